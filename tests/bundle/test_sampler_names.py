"""Names of samplers: ours, those of AUTOMATIC1111's web UI, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgate_export.bundle.sampler_names import (
    A1111_SAMPLERS,
    EDM,
    EVERY,
    SAMPLERS,
    USUAL,
    a1111_name,
    find_name,
    parse_name,
)
from tgate_export.common.errors import InvalidRequestError


@pytest.mark.parametrize("name", [*EVERY, *USUAL])
def test_a_name_is_its_own(name: str) -> None:
    assert str(parse_name(name)) == str(find_name(name)) == str(parse_name(name.upper())) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("euler-trailing-karras", "euler-karras-trailing"),
        ("ddim-zsnr-trailing", "ddim-trailing-zsnr"),
        ("dpm++2m-sde-heun-beta", "dpm++2m-sde-heun-beta"),
        ("DPM2-A-ays", None),
        ("euler@timesteps= 999, 500", "euler@timesteps=999,500"),
        ("euler@sigmas=14.615,2.5,0.0", "euler@sigmas=14.615,2.5"),
        ("Euler a", "euler-a"),
        ("euler A", "euler-a"),
        ("DPM++ 2M Karras", "dpm++2m-karras"),
        ("DPM++ 2M", "dpm++2m-karras"),
        ("dpm++  2m uniform", "dpm++2m"),
        ("DPM++ 2M SDE", "dpm++2m-sde-exponential"),
        ("DPM++ 2M SDE Heun", "dpm++2m-sde-heun-exponential"),
        ("DPM++ 2M SDE Heun Karras", "dpm++2m-sde-heun-karras"),
        ("DPM++ 3M SDE SGM Uniform", "dpm++3m-sde-trailing"),
        ("DPM2 a", "dpm2-a-karras"),
        ("LMS Karras", "lms-karras"),
        ("PLMS", "pndm"),
        ("Heun Align Your Steps", "heun-ays"),
    ],
)
def test_other_ways_to_say_it(text: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(InvalidRequestError):
            find_name(text)
        return
    found = find_name(text)
    assert str(found) == name
    assert str(parse_name(name)) == name


@pytest.mark.parametrize(
    ("sampler", "type_", "name"),
    [
        ("Euler", "", "euler"), ("Euler", "Automatic", "euler"),
        ("Euler", "karras", "euler-karras"),
        ("DPM++ 2M", "Uniform", "dpm++2m"), ("DPM++ SDE", "automatic", "dpm++sde-karras"),
        ("DDIM", "Karras", "ddim"), ("UniPC", "Beta", "unipc"),
        ("Euler Beta", "Karras", "euler-beta"),
        ("LMS", "simple", "lms-trailing"),
    ],
)  # fmt: skip
def test_schedule_types(sampler: str, type_: str, name: str) -> None:
    assert str(find_name(sampler, type_)) == name


@pytest.mark.parametrize(
    "text", ["", "none", "heun-", "-karras", "euler-b", "karras", "lcm-lcm", "@"]
)
def test_what_is_no_name(text: str) -> None:
    assert find_name(text) is None
    assert a1111_name(text) == (text, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ddim-karras", "ddim cannot be followed by -karras, by -linspace, -leading, -trailing"),
        ("lcm-beta", "lcm cannot be followed by -beta, by nothing"),
        ("euler-karras-beta", "two spacings"),
        ("euler-trailing-leading", "two spacings"),
        ("euler-ays-karras", "-ays is a spacing of its own"),
        ("euler-karras@timesteps=3,2", "stands in place of -karras"),
        ("euler@3,2", "is no list"),
        ("euler@steps=3,2", "is no list"),
        ("dpm++2m@sigmas=3,2", "takes no sigmas of one's own"),
        ("ddim@timesteps=3,2", "takes no timesteps of one's own"),
        ("euler@timesteps=", "are no numbers"),
        ("euler@timesteps=9.5,2", "are no numbers"),
        ("euler@timesteps=2,3", "must fall"),
        ("euler@timesteps=2,-3", "must fall"),
        ("euler@sigmas=nan", "must fall"),
        ("euler@sigmas=inf,1", "must fall"),
        ("euler@sigmas=0", "must fall"),
        ("euler@timesteps=" + ",".join(map(str, range(200, 99, -1))), "101 timesteps are more"),
    ],
)
def test_what_cannot_be(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        find_name(text)
    assert caught.value.field == "scheduler"
    assert "\n" not in str(caught.value)


def test_a_schedule_that_a_sampler_cannot_have() -> None:
    with pytest.raises(InvalidRequestError, match="LCM has Automatic, Uniform, not 'Karras'"):
        find_name("LCM", "Karras")


@pytest.mark.parametrize("name", [*EVERY, "euler-ays", "heun-trailing"])
def test_the_web_ui_s_name_is_read_back(name: str) -> None:
    sampler, type_ = a1111_name(name)
    known = parse_name(name)
    assert known is not None
    assert (sampler in A1111_SAMPLERS.values()) == (known.sampler in A1111_SAMPLERS)
    assert str(find_name(sampler if type_ is None else f"{sampler} {type_}")) == name


def test_names_that_the_web_ui_has_not() -> None:
    for name in ("euler-karras-trailing", "deis", "euler@timesteps=9,3", *EDM):
        assert a1111_name(name) == (name, None)


@given(st.text(max_size=40) | st.from_regex(r"[a-z+0-9@=,.\-]{1,40}", fullmatch=True))
def test_any_text(text: str) -> None:
    try:
        found = find_name(text)
    except InvalidRequestError:
        return
    assert found is None or (found.sampler in SAMPLERS and find_name(str(found)) == found)
