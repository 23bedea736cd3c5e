"""How clip models execute: one file a runtime, all with the contract of `torch.TorchRuntime`."""
