"""Networks that know no task: ResNets, VGG, frozen BN, region pooling."""
