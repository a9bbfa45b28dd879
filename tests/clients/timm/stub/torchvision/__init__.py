"""The names of torchvision that `import timm` asks for; nothing that timm's networks run.

Builds of torchvision belong to builds of torch, and timm needs it for image files only. Ours, not a copy.
"""
