"""The hypernetwork of Text-to-LoRA (arXiv 2506.06105): from embeddings of texts to the factors of their LoRAs.

Parameters and buffers are named as SakanaAI's code names them, so that a state dict of one fits the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adaptrix_text_to_lora.shape import Module, Shape

_DROPOUT = 0.05

#: module name -> (A ``[N, layers, r, in]``, B ``[N, layers, out, r]``)
Factors = Mapping[str, tuple[Tensor, Tensor]]


class Hypernetwork(nn.Module):
    """L, M or S, as its shape says; ``modules`` of the shape are in the order of their type embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        latent, quarter = shape.latent, shape.latent // 4
        self.shape = shape
        self.task_encoder = _TaskEncoder(shape.embedding, latent // 2)
        self.layer_depth_encoder = _embedding(shape.layers, quarter)
        self.layer_type_encoder = _embedding(len(shape.modules), quarter)
        self.mixer = nn.Sequential(nn.Dropout(_DROPOUT), *_mlp(latent, latent), nn.Dropout(_DROPOUT))
        self.mlp1, self.mlp2 = _Residual(latent), _Residual(latent)
        self.mlp3 = nn.Sequential(nn.LayerNorm(latent), *_mlp(latent, shape.head_in))
        if shape.variant == "S":
            self.pos_emb = _embedding(shape.rank, latent)
        if shape.variant != "L":
            self.out_emb = nn.ModuleDict({module.name: _Sides(latent) for module in shape.modules})
            self.out_emb_norm = nn.LayerNorm(latent)
        self.heads = nn.ModuleDict(
            {module.name: nn.Linear(shape.head_in, shape.head_out(module), shape.bias) for module in shape.modules}
        )
        self.AB_offset, self.mean_recon_target, self.std_recon_target = (_Library(shape) for _ in range(3))
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Heads whose weight is 0 and whose bias is a LoRA's own start: for L, ΔW = 0 whatever the text.

        M and S share a head between A and B and so cannot start at B = 0; they start as published, with A's
        Kaiming numbers scaled to keep the size of the product's gradient.
        """
        for module in self.shape.modules:
            head = self.heads[module.name]
            nn.init.zeros_(head.weight)
            if head.bias is not None:
                head.bias.copy_(_start_bias(self.shape, module, head.bias))

    def forward(self, embeddings: Tensor) -> Factors:
        """The factors for embeddings ``[N, E]``; every text, layer and rank goes through a head in one product."""
        task = self.task_encoder.mlp(embeddings)
        return {module.name: self._of(index, module, task) for index, module in enumerate(self.shape.modules)}

    def _of(self, index: int, module: Module, task: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.mlp1(self.mixer(self._inputs(index, task)))
        A, B = self._split(module, mixed) if self.shape.variant == "L" else self._sides(module, mixed)
        return self._finished(module.name, A, B.transpose(-1, -2))

    def _inputs(self, index: int, task: Tensor) -> Tensor:
        """``[N, layers, ℓ]``: text, depth and type side by side."""
        texts, layers = len(task), self.shape.layers
        depth = self.layer_depth_encoder(torch.arange(layers, device=task.device))
        kind = self.layer_type_encoder(torch.tensor([index], device=task.device))
        parts = (task[:, None].expand(-1, layers, -1), depth.expand(texts, -1, -1), kind.expand(texts, layers, -1))
        return torch.cat(parts, dim=-1)

    def _split(self, module: Module, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """L: one head gives A and B, each ``[N, layers, r, width]``."""
        rank, out = self.shape.rank, self.heads[module.name](self.mlp3(self.mlp2(mixed)))
        A, B = out.split((rank * module.inp, rank * module.out), dim=-1)
        return A.unflatten(-1, (rank, module.inp)), B.unflatten(-1, (rank, module.out))

    def _sides(self, module: Module, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """M and S: a pass for A and one for B, told apart by an embedding; the narrower one leaves columns unused."""
        sides = self.out_emb[module.name]
        A = self._side(module, mixed + self.out_emb_norm(sides.A), module.inp)
        return A, self._side(module, mixed + self.out_emb_norm(sides.B), module.out)

    def _side(self, module: Module, mixed: Tensor, width: int) -> Tensor:
        """``[N, layers, r, width]``."""
        hidden = self.mlp2(mixed)
        if self.shape.variant == "M":
            return self._narrowed(module, self.mlp3(hidden), width).unflatten(-1, (self.shape.rank, width))
        ranks = self.mlp2(self.pos_emb(torch.arange(self.shape.rank, device=mixed.device)))
        return self._narrowed(module, self.mlp3(hidden[..., None, :] + ranks), width)

    def _narrowed(self, module: Module, hidden: Tensor, width: int) -> Tensor:
        """Output of the head of M or S, without the columns that the narrower side leaves unused."""
        head = self.heads[module.name]
        weight, bias = (
            None if rows is None else rows.unflatten(0, (-1, module.widest))[:, :width].flatten(0, 1)
            for rows in (head.weight, head.bias)
        )
        return linear(hidden, weight, bias)

    def _finished(self, name: str, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        if self.shape.output == "added":
            add = Tensor.add if torch.is_grad_enabled() else Tensor.add_  # in place: as many bytes again for many texts
            return add(A, self.AB_offset.A.get_buffer(name)), add(B, self.AB_offset.B.get_buffer(name))
        if self.shape.output == "plain":
            return A, B
        mean, std = self.mean_recon_target, self.std_recon_target
        return (
            A * std.A.get_buffer(name) + mean.A.get_buffer(name),
            B * std.B.get_buffer(name) + mean.B.get_buffer(name),
        )


class _TaskEncoder(nn.Module):
    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(embedding, width), nn.LayerNorm(width))


class _Residual(nn.Module):
    """x + MLP(LN(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(width), *_mlp(width, width), nn.Dropout(_DROPOUT))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class _Sides(nn.Module):
    """Learned embeddings that tell a pass for A from one for B."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))


class _Library(nn.Module):
    """A LoRA for every module and layer: A ``[layers, r, in]``, B ``[layers, out, r]``, not trained."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.A, self.B = nn.Module(), nn.Module()
        for module in shape.modules:
            self.A.register_buffer(module.name, torch.zeros(shape.layers, shape.rank, module.inp))
            self.B.register_buffer(module.name, torch.zeros(shape.layers, module.out, shape.rank))


def _embedding(count: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(count, width), nn.LayerNorm(width))


def _mlp(width: int, out: int) -> tuple[nn.Module, ...]:
    """Linear, SiLU, dropout, linear, SiLU; four times as wide inside."""
    inner = 4 * width
    return nn.Linear(width, inner), nn.SiLU(), nn.Dropout(_DROPOUT), nn.Linear(inner, out), nn.SiLU()


def _start_bias(shape: Shape, module: Module, bias: Tensor) -> Tensor:
    """The start of a head's bias: peft's own for A, which is U(−1/√in, 1/√in), and zero for L's B."""
    start = torch.empty_like(bias).uniform_(-1, 1) / sqrt(module.inp)
    if shape.variant == "L":
        start[shape.rank * module.inp :] = 0
        return start
    return start / sqrt(2 if shape.variant == "M" else 2 * shape.rank)
