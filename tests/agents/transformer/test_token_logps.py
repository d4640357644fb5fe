"""Log-probabilities and divergences from hidden states: exact values and gradients, however the logits are cut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polyturn.agents.transformer import token_logps
from polyturn.agents.transformer.token_logps import chosen_logps, full_kl, projected_kl, projected_logps


def small_head(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(17, 5, generator=generator, dtype=dtype).mul_(3).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(11, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, 11, (17,), generator=generator)


def test_uniform_logits_give_log_v() -> None:
    assert chosen_logps(torch.zeros(2, 4), torch.tensor([2, 3])).tolist() == pytest.approx([-math.log(4)] * 2)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kept", [0, 400, 1 << 20])
def test_chunked_logps_are_exact(
    softcap: float | None, temperature: float, chunk: int, with_bias: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and every gradient equal plain log_softmax, in float64, whether logits are kept, made again, or some
    each."""
    monkeypatch.setitem(token_logps._KEPT_BYTES, "cpu", kept)
    hidden, weight, bias, tokens = small_head()
    given = bias if with_bias else None
    upstream = torch.randn(17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = projected_logps(hidden, weight, tokens, bias=given, softcap=softcap, temperature=temperature, chunk=chunk)
    logits = hidden @ weight.T + (bias if with_bias else 0.0)
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    plain = torch.log_softmax(capped / temperature, -1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    for a, b in zip(
        torch.autograd.grad((own * upstream).sum(), inputs),
        torch.autograd.grad((plain * upstream).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    from_logits = chosen_logps(logits, tokens, softcap=softcap, temperature=temperature)
    torch.testing.assert_close(from_logits, plain, rtol=1e-12, atol=1e-12)


def test_without_a_budget_nothing_of_the_size_of_the_logits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph holds hidden states and a few numbers a prediction; the logits would take 11."""
    monkeypatch.setitem(token_logps._KEPT_BYTES, "cpu", 0)
    hidden, weight, _, tokens = small_head()
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logps = projected_logps(hidden, weight, tokens, chunk=2)
    assert max(saved) <= max(hidden.numel(), weight.numel())
    assert not getattr(logps.grad_fn, "kept", None)


def test_no_predictions_at_all() -> None:
    hidden, weight, _, tokens = small_head()
    logps = projected_logps(hidden[:0], weight, tokens[:0])
    logps.sum().backward()
    assert logps.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()
    assert projected_kl(hidden[:0], weight, hidden[:0], weight, reference_first=True).shape == (0,)


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_under_autocast_half_precision_computes_and_float32_adds_up(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 products; gradients in the parameters' own type, near those of float32."""
    monkeypatch.setitem(token_logps._KEPT_BYTES, "cpu", kept)
    hidden, weight, _, tokens = small_head(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logps = projected_logps(hidden, weight, tokens, chunk=4)
    assert logps.dtype == torch.float32
    exact = projected_logps(hidden, weight, tokens)
    torch.testing.assert_close(logps, exact, rtol=0.05, atol=0.2)
    (rough,) = torch.autograd.grad(logps.sum(), weight)
    (fine,) = torch.autograd.grad(exact.sum(), weight)
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(rough.flatten(), fine.flatten(), dim=0) > 0.999


def test_what_does_not_fit_is_named() -> None:
    hidden, weight, _, tokens = small_head()
    with pytest.raises(ValueError, match=r"expected hidden \[M, D\], weight \[V, D\] and tokens \[M\]"):
        projected_logps(hidden, weight, tokens[:-1])
    with pytest.raises(ValueError, match="at least 1 position, got 0"):
        projected_logps(hidden, weight, tokens, chunk=0)
    with pytest.raises(ValueError, match="over one vocabulary, got 17 and 17 over 11 and 10"):
        projected_kl(hidden, weight, hidden, weight[:-1], reference_first=True)


def test_soft_cap_bounds_the_log_probability() -> None:
    """With cap c the spread of logits is at most 2c, so log p >= -2c - log V however extreme the raw logits."""
    capped = chosen_logps(torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([1]), softcap=30.0)
    assert capped.item() == pytest.approx(-60.0)


def test_full_kl_by_hand() -> None:
    """p = (1/2, 1/2), q = (3/4, 1/4): KL(p||q) = log 2 - log(3) / 2 = .1438410, KL(q||p) = 3/4 log 3 - log 2."""
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    assert full_kl(p, q).item() == pytest.approx(0.1438410, abs=1e-6)
    assert full_kl(q, p + 3.0).item() == pytest.approx(0.1308121, abs=1e-6)


def test_full_kl_with_excluded_tokens() -> None:
    """A token both exclude costs nothing and leaves no nan in the gradient; one only q excludes costs inf."""
    p = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    q = torch.tensor([0.5, 0.0, -math.inf], requires_grad=True)
    value = full_kl(p, q)
    grads = torch.autograd.grad(value, (p, q))
    assert math.isfinite(value.item())
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert full_kl(torch.zeros(3), torch.tensor([0.0, 0.0, -math.inf])).item() == math.inf


@pytest.mark.parametrize("reference_first", [True, False])
def test_full_kl_from_hidden_is_exact(reference_first: bool) -> None:
    hidden, weight, _, _ = small_head()
    other_hidden, other_weight = hidden.detach().flip(0), weight.detach().flip(0)
    value = projected_kl(
        hidden, weight, other_hidden, other_weight, reference_first=reference_first, softcap=5.0, chunk=3
    )
    policy, reference = (5.0 * torch.tanh(h @ w.T / 5.0) for h, w in ((hidden, weight), (other_hidden, other_weight)))
    plain = full_kl(reference, policy) if reference_first else full_kl(policy, reference)
    torch.testing.assert_close(value, plain)
    for a, b in zip(
        torch.autograd.grad(value.sum(), (hidden, weight)),
        torch.autograd.grad(plain.sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
