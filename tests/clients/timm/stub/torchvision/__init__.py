"""A stub with the names of torchvision that `import timm` needs.

A build of torchvision needs a matching build of torch, and timm uses it for image files only. No code is
copied from torchvision.
"""
