from torchvision.transforms import functional as functional


class ToTensor:
    """The base class of a class of timm."""
