"""Regenerates optimizers.json and optimizers.safetensors: 20 steps of each optimizer.

    python3 make_optimizers.py          # needs torch and safetensors

Parameters are a few tensors of odd shapes; they and their gradients are sines of the place of an element,
squared, which the test makes too. Learning rates follow a cosine. optimizers.json has a configuration a case;
optimizers.safetensors the parameters after every step, one after the other in the order of SHAPES:
`[steps, elements]` f32.

SGD, AdamW and Muon are torch.optim's. LARS, LAMB, look-ahead and airbench's Muon restate their authors'
algorithms. airbench's is there twice, since what it rounds to bf16 is not what torch.optim.Muon rounds: once
as its author wrote it, once with torch.optim.Muon's iteration, on momentum of torch.optim.Muon's scale.
"""

import json
import math
import pathlib

import torch
from torch.optim._muon import _zeropower_via_newtonschulz
from safetensors.torch import save_file

STEPS = 20
SHAPES = {
    "conv1.weight": (5, 3, 3, 3),
    "bn1.weight": (5,),
    "bn1.bias": (5,),
    "conv2.weight": (3, 5, 1, 1),
    "hidden.weight": (7, 3),
    "hidden.bias": (7,),
    "linear.weight": (4, 7),
    "linear.bias": (4,),
}
CLASSIFIER = "linear.weight"


def sines(count, scale, phase):
    """Of squares, so that matrices have their full rank; in f64, so that another libm gives the same f32."""
    places = torch.arange(count, dtype=torch.float64)
    return (scale * (0.37 * places * places + phase).sin()).float()


def learning_rate(lr, step):
    return lr * (1 + math.cos(math.pi * step / STEPS)) / 2


def parameters():
    found, start = {}, 0
    whole = sines(sum(math.prod(shape) for shape in SHAPES.values()), 0.5, 0.1)
    for name, shape in SHAPES.items():
        found[name] = torch.nn.Parameter(whole[start:start + math.prod(shape)].view(shape).clone())
        start += math.prod(shape)
    return found


def set_gradients(named, step):
    whole = sines(sum(p.numel() for p in named.values()), 0.1, 1.0 + 2.3 * step)
    start = 0
    for parameter in named.values():
        parameter.grad = whole[start:start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()


def groups(named, config):
    """As the configuration's decay_norm_and_bias, norm_bias_lr_factor and frozen say."""
    lr, decay = config["lr"], config["weight_decay"]
    made = []
    for name, parameter in named.items():
        if name in config.get("frozen", []):
            continue
        factor = config.get("norm_bias_lr_factor", 1.0) if name == "bn1.bias" else 1.0
        decays = config.get("decay_norm_and_bias", True) or (parameter.ndim > 1)
        made.append({"params": [parameter], "lr": lr * factor,
                     "weight_decay": decay / factor if decays else 0.0})
    return made


def is_matrix(name, parameter):
    return parameter.ndim > 1 and name != CLASSIFIER


class Lars(torch.optim.Optimizer):
    """You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, 2017, algorithm 1."""

    def __init__(self, params, momentum, trust_coefficient):
        super().__init__(params, {"momentum": momentum, "trust_coefficient": trust_coefficient})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                v = self.state[w].setdefault("v", torch.zeros_like(w))
                beta = group["weight_decay"]
                local = 1.0
                if w.ndim > 1 or group["adapts"]:
                    local = group["trust_coefficient"] * w.norm() / (w.grad.norm() + beta * w.norm())
                v.copy_(group["momentum"] * v + group["lr"] * local * (w.grad + beta * w))
                w -= v


class Lamb(torch.optim.Optimizer):
    """You et al., Large Batch Optimization for Deep Learning, ICLR 2020, algorithm 2."""

    def __init__(self, params, betas, eps):
        super().__init__(params, {"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for x in group["params"]:
                state = self.state[x]
                m = state.setdefault("m", torch.zeros_like(x))
                v = state.setdefault("v", torch.zeros_like(x))
                state["t"] = t = state.get("t", 0) + 1
                m.copy_(beta1 * m + (1 - beta1) * x.grad)
                v.copy_(beta2 * v + (1 - beta2) * x.grad ** 2)
                r = (m / (1 - beta1 ** t)) / ((v / (1 - beta2 ** t)).sqrt() + group["eps"])
                update = r + group["weight_decay"] * x
                ratio = x.norm() / update.norm() if x.ndim > 1 or group["adapts"] else 1.0
                x -= group["lr"] * ratio * update


def newton_schulz(g, steps, eps=1e-7):
    """airbench94_muon.py's zeropower_via_newtonschulz5."""
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = g.bfloat16()
    x /= x.norm() + eps
    if g.size(0) > g.size(1):
        x = x.T
    for _ in range(steps):
        A = x @ x.T
        B = b * A + c * A @ A
        x = a * x + B @ x
    return x.T if g.size(0) > g.size(1) else x


class AirbenchMuon(torch.optim.Optimizer):
    """airbench94_muon.py's Muon. Source: Jordan, github.com/KellerJordan/cifar10-airbench."""

    def __init__(self, params, lr, momentum, steps, iterate):
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps})
        self.iterate = iterate

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad
                buf = self.state[p].setdefault("momentum_buffer", torch.zeros_like(g))
                buf.mul_(group["momentum"]).add_(g)
                g = g.add(buf, alpha=group["momentum"])
                p.mul_(len(p) ** 0.5 / p.norm())
                update = self.iterate(g.reshape(len(g), -1), group["steps"]).reshape(g.shape)
                p.add_(update, alpha=-group["lr"])


def adaptive(cls, named, config, **numbers):
    made = groups(named, config)
    for group in made:
        group["adapts"] = config.get("decay_norm_and_bias", True)
    return [cls(made, **numbers)]


def sgd(named, config):
    return [torch.optim.SGD(groups(named, config), lr=config["lr"], momentum=config.get("momentum", 0.0),
                            nesterov=config.get("nesterov", False))]


def adamw(named, config):
    return [torch.optim.AdamW(groups(named, config), lr=config["lr"])]


def muon(named, config):
    """torch.optim.Muon takes matrices only: a convolution's weight is viewed as one."""
    matrices = {n: p for n, p in named.items() if is_matrix(n, p)}
    others = {n: p for n, p in named.items() if n not in matrices}
    flat = [torch.nn.Parameter(p.data.view(len(p), -1)) for p in matrices.values()]
    made = torch.optim.Muon(flat, lr=config["lr"], weight_decay=config["weight_decay"],
                            adjust_lr_fn=config.get("adjust_lr"))

    def step():
        for view, parameter in zip(flat, matrices.values()):
            view.grad = parameter.grad.view_as(view)
        type(made).step(made)

    made.step = step
    aux = {"lr": config["aux_lr"], "weight_decay": config["aux_weight_decay"]}
    return [made, *adamw(others, aux)]


def pytorchs_newton_schulz(g, steps):
    g = g * (1 - AIRBENCH["momentum"])
    return _zeropower_via_newtonschulz(g, (3.4445, -4.7750, 2.0315), steps, 1e-7)


def airbench_muon(named, config, iterate=newton_schulz):
    filters = [p for n, p in named.items() if is_matrix(n, p)]
    others = {n: p for n, p in named.items() if not is_matrix(n, p)}
    aux = {**config, "lr": config["aux_lr"], "weight_decay": config["aux_weight_decay"],
           "momentum": config["aux_momentum"], "nesterov": True}
    return [AirbenchMuon(filters, config["lr"], config["momentum"], config["ns_steps"], iterate),
            *sgd(others, aux)]


class Lookahead:
    """airbench94's LookaheadState; with a power of 0, Zhang et al., NeurIPS 2019, algorithm 1."""

    def __init__(self, named, config):
        self.named, self.config = named, config
        self.slow = {name: p.detach().clone() for name, p in named.items()}

    def after_step(self, taken):
        if taken % self.config["lookahead_steps"] == 0:
            progress = taken / STEPS
            self.update(self.config["lookahead_decay"] * progress ** self.config["lookahead_power"])

    @torch.no_grad()
    def update(self, decay):
        for slow, parameter in zip(self.slow.values(), self.named.values()):
            slow.lerp_(parameter, 1 - decay)
            parameter.copy_(slow)


GROUPED = {"decay_norm_and_bias": False, "norm_bias_lr_factor": 64.0, "frozen": ["bn1.weight"]}
SGD = {"name": "sgd", "lr": 0.05, "weight_decay": 0.02, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
LARS = {"name": "lars", "lr": 2.0, "weight_decay": 0.02, "momentum": 0.9, "trust_coefficient": 0.02}
LAMB = {"name": "lamb", "lr": 0.02, "weight_decay": 0.1}
MUON = {"name": "muon", "lr": 0.02, "weight_decay": 0.1, "aux_lr": 0.01, "aux_weight_decay": 0.1}
AIRBENCH = {"name": "muon", "lr": 0.24, "weight_decay": 0.0, "momentum": 0.6, "ns_steps": 3,
            "adjust_lr": "none", "normalize_weights": True, "aux": "sgd", "aux_lr": 0.67,
            "aux_weight_decay": 0.006, "aux_momentum": 0.85, "norm_bias_lr_factor": 0.0791}


def lars(named, config):
    return adaptive(Lars, named, config, momentum=0.9, trust_coefficient=0.02)


def lamb(named, config):
    return adaptive(Lamb, named, config, betas=(0.9, 0.999), eps=1e-6)


CASES = {
    "sgd": (SGD, sgd),
    "sgd, Nesterov": ({**SGD, "nesterov": True}, sgd),
    "sgd, groups": ({**SGD, "nesterov": True, "lr": 0.005, **GROUPED}, sgd),
    "adamw": (ADAMW, adamw),
    "adamw, groups": ({**ADAMW, **GROUPED}, adamw),
    "lars": (LARS, lars),
    "lars, groups": ({**LARS, "decay_norm_and_bias": False}, lars),
    "lamb": (LAMB, lamb),
    "lamb, groups": ({**LAMB, "decay_norm_and_bias": False}, lamb),
    "muon": (MUON, muon),
    "muon, match_rms_adamw": ({**MUON, "adjust_lr": "match_rms_adamw"}, muon),
    "muon, airbench": (AIRBENCH, airbench_muon),
    "muon, airbench, PyTorch's iteration": (
        AIRBENCH, lambda named, config: airbench_muon(named, config, pytorchs_newton_schulz)),
    "look-ahead": ({**SGD, "lookahead_steps": 5, "lookahead_decay": 0.5, "lookahead_power": 0}, sgd),
    "look-ahead, airbench": (
        {**SGD, "nesterov": True, "lookahead_steps": 5, "lookahead_decay": 0.95**5, "lookahead_power": 3},
        sgd),
}


def run(config, make):
    named = parameters()
    optimizers = make(named, config)
    lookahead = Lookahead(named, config) if "lookahead_steps" in config else None
    initial = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    rows = []
    for step in range(STEPS):
        scheduled = iter(initial)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(next(scheduled), step)
        set_gradients(named, step)
        for optimizer in optimizers:
            optimizer.step()
        if lookahead:
            lookahead.after_step(step + 1)
        rows.append(torch.cat([p.detach().flatten() for p in named.values()]))
    return torch.stack(rows)


def main() -> None:
    torch.set_num_threads(1)
    here = pathlib.Path(__file__)
    reference = {
        "torch": torch.__version__.split("+")[0],
        "shapes": SHAPES,
        "cases": {name: config for name, (config, _) in CASES.items()},
    }
    here.with_name("optimizers.json").write_text(json.dumps(reference, indent=1) + "\n")
    save_file({name: run(*case) for name, case in CASES.items()}, here.with_name("optimizers.safetensors"))


if __name__ == "__main__":
    main()
