from torchvision.transforms import functional as functional


class ToTensor:
    """timm has a subclass."""
