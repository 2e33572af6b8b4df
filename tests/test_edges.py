"""Edge states: where they stand, which depend on the prompt, and where they land."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from directions.edges import MAX_ROLES, REST, EdgeBank, find, read
from directions.encoder import AlignedEncoder, Place, load_aligned_encoder
from directions.files import DirectionFormatError

COUNT, WIDTH = 40, 8


def of(text):
    """`.` an own token, `e` an edge state, `_` a masked one."""
    return [c == "." for c in text], [c != "_" for c in text]


@pytest.mark.parametrize(
    ("text", "ends", "padded", "chunk", "found"),
    [
        ("e...e", 1, False, 0, {1: [0], -1: [4]}),
        ("ee..ee__", 2, False, 0, {1: [1], 2: [0], -1: [4], -2: [5]}),
        ("e..eee", 1, True, 0, {1: [0], -1: [3], REST: [4, 5]}),
        ("__e..e", 1, False, 0, {1: [2], -1: [5]}),
        ("e..ee.ee", 1, True, 4, {1: [0, 4], -1: [3, 6], REST: [7]}),
        ("eeee", 1, True, 0, {}),
    ],
)
def test_edge_states_are_found_by_where_they_stand(text, ends, padded, chunk, found):
    assert find(*of(text), ends, padded, chunk) == found


@given(st.text(alphabet=".e_", max_size=40), st.integers(0, 12), st.booleans())
def test_what_is_found_is_no_own_token_and_not_masked_and_found_once(text, ends, padded):
    content, attended = of(text)
    places = [i for at in find(content, attended, ends, padded).values() for i in at]
    assert len(places) == len(set(places)) and all(attended[i] and not content[i] for i in places)
    assert all(abs(role) <= MAX_ROLES for role in find(content, attended, ends, padded))


@pytest.fixture
def prompts():
    """Means of harmless prompts in two groups, a start that never varies, an end that follows the mean, padding that follows it loosely."""
    draw = torch.Generator().manual_seed(2)
    means = torch.randn(COUNT, WIDTH, generator=draw) + torch.where(torch.arange(COUNT) % 2 == 0, 5.0, -5.0).unsqueeze(1)
    edges = [{1: torch.ones(WIDTH), -1: 2 * mean, REST: mean + 1} for mean in means]
    return means, edges


def test_a_state_that_is_the_same_for_every_prompt_is_left_out(prompts):
    bank = EdgeBank.of(*prompts)
    assert set(bank.roles) == {-1, REST} and bank.states.shape == (COUNT, 2, WIDTH)


def test_a_role_that_some_prompts_lack_is_left_out(prompts):
    means, edges = prompts
    del edges[3][REST]
    assert EdgeBank.of(means, edges).roles == (-1,)


def test_edge_states_land_on_those_of_the_prompts_that_the_own_tokens_are_nearest_to(prompts):
    bank = EdgeBank.of(*prompts)
    content, attended = of("e..ee__")
    states = torch.zeros(7, WIDTH)
    states[1:3] = 5.0
    states[3] = -10.0  # an end that still says the opposite
    out = bank.land(states, torch.tensor(content), find(content, attended, 1, True))
    assert (out[3] > 5).all() and torch.equal(out[[0, 1, 2, 5, 6]], states[[0, 1, 2, 5, 6]])


def test_padding_moves_as_a_whole(prompts):
    bank = EdgeBank.of(*prompts)
    content, attended = of("e..eee")
    states = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1)).half()
    states[1:3] = 5.0
    out = bank.land(states, torch.tensor(content), find(content, attended, 1, True))
    shift = (out - states)[4:6].float()
    assert out.dtype == states.dtype and torch.allclose(shift[0], shift[1], atol=2e-2) and shift.mean() > 3


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_what_lands_stays_finite_in_every_precision(prompts, dtype):
    means, edges = prompts
    bank = EdgeBank.of(means * 100, [{role: rows * 20000 for role, rows in own.items()} for own in edges])
    content, attended = of("e..eee")
    states = (torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(3)) * 100).to(dtype)
    states[4] = states[4].float().abs().mul(50).clamp(max=torch.finfo(dtype).max).to(dtype)
    states[1:3] = torch.full((2, WIDTH), 400.0).to(dtype)  # among the harmless prompts of one group
    out = bank.land(states, torch.tensor(content), find(content, attended, 1, True))
    assert out.dtype == dtype and torch.isfinite(out.float()).all() and out.float()[3].abs().max() > 100


def test_without_own_tokens_or_roles_nothing_moves(prompts):
    states = torch.randn(4, WIDTH)
    none = torch.zeros(4, dtype=torch.bool)
    assert torch.equal(EdgeBank.of(*prompts).land(states, none, {-1: [3]}), states)
    assert torch.equal(EdgeBank.of(torch.empty(0, WIDTH), []).land(states, ~none, {-1: [3]}), states)


def test_read_takes_the_mean_of_each_role():
    states = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(read(states, {REST: [2, 3], -1: [1]})[REST], states[2:].mean(0))


@pytest.fixture
def encoder(aligned, prompts):
    draw = torch.Generator().manual_seed(4)
    means = torch.randn(COUNT, aligned.width, generator=draw)
    bank = EdgeBank.of(means, [{-1: mean, REST: mean - 1} for mean in means])
    return AlignedEncoder({"cond": aligned}, {"cond": Place("cond", ("l",), aligned.width, aligned.width)}, {"cond": torch.ones(aligned.width)}, edges={"cond": bank})


def test_a_file_gives_the_edge_states_back(encoder, tmp_path):
    bank = load_aligned_encoder(encoder.save(tmp_path / "a.safetensors")).edges["cond"]
    own = encoder.edges["cond"]
    assert bank.roles == own.roles and torch.equal(bank.states, own.states) and torch.equal(bank.prompts, own.prompts)


def test_a_file_without_edge_states_is_read(encoder, tmp_path):
    assert load_aligned_encoder(replace(encoder, edges={}).save(tmp_path / "a.safetensors")).edges == {}


@pytest.mark.parametrize("roles", [(-1,), (-1, -1), (-1, 99), ()])
def test_roles_that_do_not_go_with_the_states_are_refused(encoder, tmp_path, roles):
    wrong = replace(encoder, edges={"cond": replace(encoder.edges["cond"], roles=roles)})
    with pytest.raises(DirectionFormatError, match="edge states"):
        load_aligned_encoder(wrong.save(tmp_path / "a.safetensors"))
