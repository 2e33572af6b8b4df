"""Special tokens: where they stand, which depend on the prompt, and where they land."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from directions.alignment import Alignment, load_aligned_encoder
from directions.files import DirectionFormatError
from directions.place import Place
from directions.special_tokens import MAX_ROLES, REST, SpecialTokenBank, find_special_tokens, special_states

COUNT, WIDTH = 40, 8


def of(text):
    """`.` an own token, `e` a special token, `_` a masked one."""
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
def test_special_tokens_are_found_by_where_they_stand(text, ends, padded, chunk, found):
    assert find_special_tokens(*of(text), ends, padded, chunk) == found


@given(st.text(alphabet=".e_", max_size=40), st.integers(0, 12), st.booleans())
def test_what_is_found_is_no_own_token_and_not_masked_and_found_once(text, ends, padded):
    content, attended = of(text)
    places = [i for at in find_special_tokens(content, attended, ends, padded).values() for i in at]
    assert len(places) == len(set(places)) and all(attended[i] and not content[i] for i in places)
    assert all(abs(role) <= MAX_ROLES for role in find_special_tokens(content, attended, ends, padded))


@pytest.fixture
def prompts():
    """Means of harmless prompts in two groups, a start that never varies, an end that follows the mean, padding that
    follows it loosely."""
    draw = torch.Generator().manual_seed(2)
    means = torch.randn(COUNT, WIDTH, generator=draw) + torch.where(torch.arange(COUNT) % 2 == 0, 5.0, -5.0).unsqueeze(
        1
    )
    special = [{1: torch.ones(WIDTH), -1: 2 * mean, REST: mean + 1} for mean in means]
    return means, special


def test_a_state_that_is_the_same_for_every_prompt_is_left_out(prompts):
    bank = SpecialTokenBank.of(*prompts)
    assert set(bank.roles) == {-1, REST} and bank.states.shape == (COUNT, 2, WIDTH)


def test_a_role_that_some_prompts_lack_is_left_out(prompts):
    means, special = prompts
    del special[3][REST]
    assert SpecialTokenBank.of(means, special).roles == (-1,)


def test_special_tokens_land_on_those_of_the_prompts_that_the_own_tokens_are_nearest_to(prompts):
    bank = SpecialTokenBank.of(*prompts)
    content, attended = of("e..ee__")
    states = torch.zeros(7, WIDTH)
    states[1:3] = 5.0
    states[3] = -10.0  # an end that still says the opposite
    out = bank.land(states, torch.tensor(content), find_special_tokens(content, attended, 1, True))
    assert (out[3] > 5).all() and torch.equal(out[[0, 1, 2, 5, 6]], states[[0, 1, 2, 5, 6]])


def test_padding_moves_as_a_whole(prompts):
    bank = SpecialTokenBank.of(*prompts)
    content, attended = of("e..eee")
    states = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1)).half()
    states[1:3] = 5.0
    out = bank.land(states, torch.tensor(content), find_special_tokens(content, attended, 1, True))
    shift = (out - states)[4:6].float()
    assert out.dtype == states.dtype and torch.allclose(shift[0], shift[1], atol=2e-2) and shift.mean() > 3


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_what_lands_stays_finite_in_every_precision(prompts, dtype):
    means, special = prompts
    bank = SpecialTokenBank.of(means * 100, [{role: rows * 20000 for role, rows in own.items()} for own in special])
    content, attended = of("e..eee")
    states = (torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(3)) * 100).to(dtype)
    states[4] = states[4].float().abs().mul(50).clamp(max=torch.finfo(dtype).max).to(dtype)
    states[1:3] = torch.full((2, WIDTH), 400.0).to(dtype)  # among the harmless prompts of one group
    out = bank.land(states, torch.tensor(content), find_special_tokens(content, attended, 1, True))
    assert out.dtype == dtype and torch.isfinite(out.float()).all() and out.float()[3].abs().max() > 100


def test_without_own_tokens_or_roles_nothing_moves(prompts):
    states = torch.randn(4, WIDTH)
    none = torch.zeros(4, dtype=torch.bool)
    assert torch.equal(SpecialTokenBank.of(*prompts).land(states, none, {-1: [3]}), states)
    assert torch.equal(SpecialTokenBank.of(torch.empty(0, WIDTH), []).land(states, ~none, {-1: [3]}), states)


def test_reading_takes_the_mean_of_each_role():
    states = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(special_states(states, {REST: [2, 3], -1: [1]})[REST], states[2:].mean(0))


@pytest.fixture
def bank(aligned):
    means = torch.randn(COUNT, aligned.slot.width, generator=torch.Generator().manual_seed(4))
    return SpecialTokenBank.of(means, [{-1: mean, REST: mean - 1} for mean in means])


def encoder(aligned, bank):
    width = aligned.slot.width
    return Alignment(
        {
            "cond": replace(
                aligned.slot, place=Place("cond", ("l",), width, width), probe=torch.ones(width), special_tokens=bank
            )
        }
    )


def test_a_file_gives_the_special_tokens_back(aligned, bank, tmp_path):
    read = load_aligned_encoder(encoder(aligned, bank).save(tmp_path / "a.safetensors")).slots["cond"].special_tokens
    assert (
        read.roles == bank.roles and torch.equal(read.states, bank.states) and torch.equal(read.prompts, bank.prompts)
    )


def test_a_file_without_special_tokens_is_read(aligned, tmp_path):
    assert (
        load_aligned_encoder(encoder(aligned, None).save(tmp_path / "a.safetensors")).slots["cond"].special_tokens
        is None
    )


@pytest.mark.parametrize("roles", [(-1,), (-1, -1), (-1, 99), ()])
def test_roles_that_do_not_go_with_the_states_are_refused(aligned, bank, tmp_path, roles):
    wrong = encoder(aligned, replace(bank, roles=roles))
    with pytest.raises(DirectionFormatError, match="edge states"):
        load_aligned_encoder(wrong.save(tmp_path / "a.safetensors"))
