# Named by timm when it is imported, and used only to read these sets.
CIFAR10 = CIFAR100 = MNIST = KMNIST = FashionMNIST = ImageFolder = None
