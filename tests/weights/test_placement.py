"""Where theta is put, by what fits."""

import pytest

from esmpi.errors import UserError
from esmpi.weights.placement import choose_placement, device_memory_wanted, memory_wanted

GIB = 2**30


@pytest.mark.parametrize(
    ("wanted", "billions", "memory", "placement"),
    [
        ("auto", 1.5, 72, "device"),
        ("auto", 8, 72, "device"),
        ("auto", 14, 72, "host"),
        ("auto", 32, 72, "host"),
        ("auto", 7.6, 0.9 * 22.5, "host"),  # an L4
        ("auto", 14.8, 0.9 * 39.6, "host"),  # an A100 of 40 GB
        ("device", 11, 72, "device"),
        ("host+bf16", 14, 72, "host+bf16"),
        ("auto", 1.5, 20, "device"),
        ("device", 8, 72, "device"),
        ("host", 1.5, 72, "host"),
        ("host+bf16", 8, 72, "host+bf16"),
    ],
)
def test_theta_is_on_the_gpu_if_it_fits(wanted: str, billions: float, memory: float, placement: str) -> None:
    theta, live = int(4e9 * billions), int(2e9 * billions)
    chosen, why = choose_placement(wanted, theta, live, int(memory * GIB))
    assert chosen == placement
    assert ("because beside it too little would be left" in why) == (wanted == "auto" and placement == "host")


@pytest.mark.parametrize(
    ("wanted", "billions", "message"),
    [
        ("auto", 38, r"the live weights alone do not fit on a GPU .*theta 141\.6 GiB \+ live weights 70\.8 GiB"),
        ("device", 14, "theta_placement: device does not fit .*: choose host, or more GPUs"),
        ("host+bf16", 20, "host.bf16 keeps a second copy .*: choose host, or more GPUs"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(wanted: str, billions: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_placement(wanted, int(4e9 * billions), int(2e9 * billions), 72 * GIB)


def test_the_plan_asks_for_just_enough() -> None:
    theta, live = int(6e9), int(3e9)
    least = device_memory_wanted(theta, live)
    assert choose_placement("auto", theta, live, least)[0] == "device"
    assert choose_placement("auto", theta, live, int(0.99 * least))[0] == "host"
    for wanted, weights in (("device", theta + live), ("host", live), ("host+bf16", 2 * live)):
        least = memory_wanted(weights)
        assert choose_placement(wanted, theta, live, least)[0] == wanted
        with pytest.raises(UserError, match="fit"):
            choose_placement(wanted, theta, live, int(0.99 * least))
