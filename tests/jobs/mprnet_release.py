"""MPRNet and MemoryNet as their releases have them: names, shapes and the order of layers, in plain functions."""

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def release(n: int, u: int, o: int, cabs: int, *, memory: bool) -> State:
    """Random weights, float32, by the names and shapes of the release."""
    generator = torch.Generator().manual_seed(n)
    state: State = {}

    def conv(name: str, c_in: int, c_out: int, kernel: int) -> None:
        bound = 1 / (c_in * kernel * kernel) ** 0.5
        state[f"{name}.weight"] = torch.empty(c_out, c_in, kernel, kernel).uniform_(-bound, bound, generator=generator)

    def cab(name: str, c: int) -> None:
        conv(f"{name}.body.0", c, c, 3)
        state[f"{name}.body.1.weight"] = torch.tensor([0.2])
        conv(f"{name}.body.2", c, c, 3)
        conv(f"{name}.CA.conv_du.0", c, c // 4, 1)
        conv(f"{name}.CA.conv_du.2", c // 4, c, 1)

    c = [n, n + u, n + 2 * u]
    for s in (1, 2, 3):
        conv(f"shallow_feat{s}.0", 3, n, 3)
        cab(f"shallow_feat{s}.1", n)
    for s in (1, 2):
        for k in (1, 2, 3):
            for i in (0, 1):
                cab(f"stage{s}_encoder.encoder_level{k}.{i}", c[k - 1])
                cab(f"stage{s}_decoder.decoder_level{k}.{i}", c[k - 1])
            if s == 2:
                for branch in ("enc", "dec"):
                    conv(f"stage2_encoder.csff_{branch}{k}", c[k - 1], c[k - 1], 1)
        conv(f"stage{s}_encoder.down12.down.1", c[0], c[1], 1)
        conv(f"stage{s}_encoder.down23.down.1", c[1], c[2], 1)
        conv(f"stage{s}_decoder.up21.up.1", c[1], c[0], 1)
        conv(f"stage{s}_decoder.up32.up.1", c[2], c[1], 1)
        for k in (1, 2):
            cab(f"stage{s}_decoder.skip_attn{k}", c[k - 1])
    for k in (1, 2, 3):
        for i in range(cabs):
            cab(f"stage3_orsnet.orb{k}.body.{i}", n + o)
        conv(f"stage3_orsnet.orb{k}.body.{cabs}", n + o, n + o, 3)
        for branch in ("enc", "dec"):
            conv(f"stage3_orsnet.conv_{branch}{k}", n, n + o, 1)
    for branch in ("enc", "dec"):
        conv(f"stage3_orsnet.up_{branch}1.up.1", c[1], c[0], 1)
        conv(f"stage3_orsnet.up_{branch}2.0.up.1", c[2], c[1], 1)
        conv(f"stage3_orsnet.up_{branch}2.1.up.1", c[1], c[0], 1)
    for sam in ("sam12", "sam23"):
        conv(f"{sam}.conv1", n, n, 1)
        conv(f"{sam}.conv2", n, 3, 1)
        conv(f"{sam}.conv3", 3, n, 1)
    conv("concat12", 2 * n, n, 3)
    conv("concat23", 2 * n, n + o, 3)
    conv("tail", n + o, 3, 3)
    if memory:
        state["memory.memory.weight"] = torch.empty(100, 3).uniform_(-2, 2, generator=generator)
        for level, number in (("part", 5), ("ins", 2)):
            name = f"memory.memory.reweight_layer_{level}"
            state[f"{name}.weight"] = torch.randn(number, number, 1, generator=generator)
            state[f"{name}.bias"] = torch.randn(number, generator=generator)
    return state


def shrunk(logits: Tensor, epsilon: float) -> Tensor:
    w = logits.softmax(1)
    w = F.relu(w - 0.0025) * w / ((w - 0.0025).abs() + epsilon)
    return w / w.sum(1, keepdim=True)


def reads(state: State, x: Tensor, epsilon: float) -> list[Tensor]:
    """What the three levels of the release's memory read for x (B, 3, H, W).

    epsilon: of the shrinkage, 1e-12 in the release.
    """
    bank = state["memory.memory.weight"]
    w, b = (state[f"memory.memory.reweight_layer_part.{end}"] for end in ("weight", "bias"))
    # The release's reshape: an instance's 5 x 3 numbers become 3 x 5, so that a "part" has numbers of several.
    rows = bank.reshape(20, 3, 5).transpose(1, 2)
    ins = (torch.sigmoid(F.conv1d(rows, w, b)) * rows).mean(1)
    w, b = (state[f"memory.memory.reweight_layer_ins.{end}"] for end in ("weight", "bias"))
    rows = ins.reshape(10, 2, 3)
    sem = (torch.sigmoid(F.conv1d(rows, w, b)) * rows).mean(1)
    f = x.permute(0, 2, 3, 1).reshape(-1, 3)
    found = []
    for level in (bank, ins, sem):
        f = shrunk(f @ level.T, epsilon) @ level
        found.append(f.reshape(len(x), *x.shape[2:], 3).permute(0, 3, 1, 2))
    return found


def outputs(state: State, x: Tensor, epsilon: float = 1e-12) -> list[Tensor]:
    """The images of stages 3, 2, 1 of the release for x (B, 3, H, W), in the tensors' precision."""
    memory = "memory.memory.weight" in state

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def cab(name: str, x: Tensor) -> Tensor:
        y = conv(f"{name}.body.2", F.prelu(conv(f"{name}.body.0", x), state[f"{name}.body.1.weight"]))
        pooled = y.mean((2, 3), keepdim=True)
        return x + y * torch.sigmoid(conv(f"{name}.CA.conv_du.2", F.relu(conv(f"{name}.CA.conv_du.0", pooled))))

    def level(name: str, x: Tensor) -> Tensor:
        return cab(f"{name}.1", cab(f"{name}.0", x))

    def resized(x: Tensor, factor: float) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def up(name: str, x: Tensor) -> Tensor:
        return conv(f"{name}.up.1", resized(x, 2))

    def encoder(s: int, x: Tensor, enc: list[Tensor], dec: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = []
        for k in (1, 2, 3):
            x = level(f"stage{s}_encoder.encoder_level{k}", x)
            if s == 2:
                x = (
                    x
                    + conv(f"stage2_encoder.csff_enc{k}", enc[k - 1])
                    + conv(f"stage2_encoder.csff_dec{k}", dec[k - 1])
                )
            maps.append(x)
            if k < 3:
                x = conv(f"stage{s}_encoder.down{k}{k + 1}.down.1", resized(x, 0.5))
        return maps

    def decoder(s: int, enc: list[Tensor]) -> list[Tensor]:
        name = f"stage{s}_decoder"
        three = level(f"{name}.decoder_level3", enc[2])
        two = level(f"{name}.decoder_level2", up(f"{name}.up32", three) + cab(f"{name}.skip_attn2", enc[1]))
        one = level(f"{name}.decoder_level1", up(f"{name}.up21", two) + cab(f"{name}.skip_attn1", enc[0]))
        return [one, two, three]

    def sam(name: str, x: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        image = conv(f"{name}.conv2", x) + base
        return conv(f"{name}.conv1", x) * torch.sigmoid(conv(f"{name}.conv3", image)) + x, image

    def shallow(s: int, image: Tensor) -> Tensor:
        return cab(f"shallow_feat{s}.1", conv(f"shallow_feat{s}.0", image))

    one, two, three = reads(state, x, epsilon) if memory else [x, x, x]
    H, W = x.shape[2] // 2, x.shape[3] // 2
    feats, decoded, sams, first = [], [], [], []
    for rows in (slice(0, H), slice(H, None)):
        left, right = (
            encoder(1, shallow(1, one[:, :, rows, columns]), [], []) for columns in (slice(0, W), slice(W, None))
        )
        feats.append([torch.cat(pair, 3) for pair in zip(left, right, strict=True)])
        decoded.append(decoder(1, feats[-1]))
        f, image = sam("sam12", decoded[-1][0], two[:, :, rows])
        sams.append(f)
        first.append(image)
    halves = [
        encoder(2, conv("concat12", torch.cat((shallow(2, two[:, :, rows]), sams[k]), 1)), feats[k], decoded[k])
        for k, rows in enumerate((slice(0, H), slice(H, None)))
    ]
    enc = [torch.cat(pair, 2) for pair in zip(*halves, strict=True)]
    dec = decoder(2, enc)
    f, second = sam("sam23", dec[0], three)
    f = conv("concat23", torch.cat((shallow(3, three), f), 1))
    for k in (1, 2, 3):
        r, i = f, 0
        while f"stage3_orsnet.orb{k}.body.{i}.body.0.weight" in state:
            r = cab(f"stage3_orsnet.orb{k}.body.{i}", r)
            i += 1
        f = f + conv(f"stage3_orsnet.orb{k}.body.{i}", r)
        for branch, maps in (("enc", enc), ("dec", dec)):
            taken = maps[k - 1]
            if k == 2:
                taken = up(f"stage3_orsnet.up_{branch}1", taken)
            if k == 3:
                taken = up(f"stage3_orsnet.up_{branch}2.1", up(f"stage3_orsnet.up_{branch}2.0", taken))
            f = f + conv(f"stage3_orsnet.conv_{branch}{k}", taken)
    return [conv("tail", f) + three, second, torch.cat(first, 2)]
