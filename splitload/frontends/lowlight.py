"""A U-Net for low-light photography: the zoo's model with long skip connections. Imports torch lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CHANNELS = (32, 64, 128, 256, 512)


def build() -> torch.nn.Module:
    """Return the network, weights drawn from torch's global random generator.

    Its one input "raw" is a packed Bayer image, float32 (batch, 4, height, width), both divisible by 16; it returns
    RGB at twice that size, float32 (batch, 3, 2 * height, 2 * width). It has 7.8 million weights.

    Source: Chen et al. 2018, "Learning to See in the Dark", section 3. Differs: He initialisation, untrained;
    depth-to-space in torch's channel order.
    """
    import torch
    from torch import nn

    class UNet(nn.Module):
        """Four times down, four times up; each level up also reads the level down of its size."""

        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList(_convs(a, b) for a, b in zip((4, *_CHANNELS), _CHANNELS, strict=False))
            pairs = list(zip(_CHANNELS[:0:-1], _CHANNELS[-2::-1], strict=True))
            self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
            self.merge = nn.ModuleList(_convs(a, b) for a, b in pairs)
            self.out = nn.Conv2d(_CHANNELS[0], 12, 1)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, a=0.2)

        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            y = self.down[0](raw)
            skips = [y]
            for level in self.down[1:]:
                y = level(nn.functional.max_pool2d(y, 2))
                skips.append(y)
            for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
                y = merge(torch.cat([up(y), skip], dim=1))
            return nn.functional.pixel_shuffle(self.out(y), 2)

    def _convs(channels_in: int, channels_out: int) -> nn.Module:
        first = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2))

    return UNet()
