"""Small ways in which a server or a message could mislead: each is found where it comes in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dln.errors import DlnError
from dln.lm.base import Sampling
from dln.lm.load import load_lm
from dln.lm.remote.call import MalformedReply, ServerFailed, passing, plain
from dln.lm.remote.endpoint import endpoint_of
from fault_scripts import after, every, first
from fault_server import FaultServer

QUICK: dict[str, Any] = {"timeout": 0.5, "connect_timeout": 0.3, "max_retries": 1}
CONTEXTS = [f"Input: box {i} of the tiles broke\nLabel:" for i in range(12)]


def test_a_key_within_a_header_is_hidden_without_its_scheme() -> None:
    endpoint = endpoint_of(
        "m", ["http://h/v1"], key_needed=False, headers={"Authorization": "Bearer sk-canary-1234", "X-Short": "a b"}
    )
    said = plain("Incorrect API key provided: sk-canary-1234. Bearer of news", endpoint.secrets())
    assert "canary" not in said
    assert "Bearer of news" in said  # a word is no secret


@pytest.mark.parametrize("fault", ["503", "502", "read time-out"])
@pytest.mark.parametrize("later", [2, 5, 8])
def test_a_server_that_is_ill_while_it_is_probed_is_not_taken_for_a_poorer_one(fault: str, later: int) -> None:
    with FaultServer() as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url, **QUICK)
        server.play(fault, after(later))
        with pytest.raises(ServerFailed):
            _ = lm.capabilities
        server.calm()
        assert lm.capabilities.label_scoring == "target scoring"  # asked anew, now that it is well


@pytest.mark.parametrize(("got", "ill"), [("503: busy", True), ("502", True), ("500: no", False), ("501", False)])
def test_only_an_illness_passes(got: str, ill: bool) -> None:
    assert passing(ServerFailed("the server fails", got=got)) == ill
    assert not passing(MalformedReply("no number"))


def test_a_reply_that_cannot_be_read_names_the_server_and_what_to_try() -> None:
    with FaultServer() as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url, **QUICK)
        assert lm.capabilities.scores_targets
        server.play("empty choices")
        with pytest.raises(MalformedReply) as caught:
            lm.sample(CONTEXTS[:1], Sampling(), [0])
    assert server.base_url in str(caught.value.where)
    assert "choices" in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    ("fault", "words"),
    [("reset before the reply", "reset|broke"), ("read time-out", "nothing came for 0.5 s")],
)
def test_silence_is_told_in_words(fault: str, words: str) -> None:
    with FaultServer() as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url, **QUICK)
        assert lm.capabilities.scores_targets
        server.play(fault)
        with pytest.raises(DlnError, match=words) as caught:
            lm.sample(CONTEXTS[:1], Sampling(), [0])
    assert "Error" not in str(caught.value.got)


@pytest.mark.parametrize("name", ["NaN", "+inf", "-inf", "null", "positive", "shifted by one"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_draw_with_an_impossible_value_has_no_density(name: str, temperature: float) -> None:
    sampling, seeds = Sampling(temperature=temperature, max_tokens=4), list(range(12))
    with FaultServer() as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url, **QUICK)
        right = lm.sample(CONTEXTS, sampling, seeds)
        server.play(f"log-probs {name}", every(2) if name != "null" else first(6))
        draws = lm.sample(CONTEXTS, sampling, seeds)
    assert [draw.text for draw in draws] == [draw.text for draw in right]
    assert any(draw.log_probs is None for draw in draws)
    for draw, known in zip(draws, right, strict=True):
        for values, wanted in (
            (draw.log_probs, known.log_probs),
            (draw.sampling_log_probs, known.sampling_log_probs),
        ):
            if values is not None and wanted is not None:
                np.testing.assert_allclose(values, wanted, atol=1e-9)
