# timm imports these names, and uses them only to read these data sets.
CIFAR10 = CIFAR100 = MNIST = KMNIST = FashionMNIST = ImageFolder = None
