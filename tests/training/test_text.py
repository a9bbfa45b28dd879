import math

import numpy as np
import pytest
import torch

from trueup.training import even_windows, next_symbol_loss, random_windows, split_text, warmup_cosine


def test_a_trial_sees_nothing_of_the_test_part():
    text = torch.arange(1000)
    fit, held_out = split_text(text, np.random.default_rng(3), tuning=False)
    tried, judged = split_text(text, np.random.default_rng(3), tuning=True)
    assert torch.equal(torch.cat([fit, held_out]).sort().values, text)
    seen = set(tried.tolist()) | set(judged.tolist())
    assert seen == set(fit.tolist())
    assert not seen & set(held_out.tolist())
    assert not set(tried.tolist()) & set(judged.tolist())
    assert len(held_out) == len(judged) == 100
    assert fit.tolist() == sorted(fit.tolist())


def test_the_seed_draws_the_parts():
    held_out = {
        int(split_text(torch.arange(100), np.random.default_rng(s), tuning=False)[1][0]) for s in range(50)
    }
    assert held_out == set(range(0, 100, 10))


def test_targets_are_the_symbols_that_follow():
    text = torch.randint(256, (200,))
    for symbols, targets in (
        even_windows(text, 7, 5),
        *random_windows(text, 7, 5, 20, torch.Generator().manual_seed(0)),
    ):
        assert symbols.shape == targets.shape == (5, 7)
        assert torch.equal(symbols[:, 1:], targets[:, :-1])
        found = text.unfold(0, 8, 1)
        for row, last in zip(symbols, targets[:, -1], strict=True):
            assert (found == torch.cat([row, last[None]])).all(1).any()


def test_even_windows_reach_from_the_first_symbol_to_the_last():
    symbols, targets = even_windows(torch.arange(50), 4, 3)
    assert symbols[0, 0] == 0
    assert targets[-1, -1] == 49


def test_random_windows_are_the_generators():
    text = torch.arange(300)
    a, b, c = (
        torch.stack([x for x, _ in random_windows(text, 3, 2, 4, torch.Generator().manual_seed(seed))])
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_even_logits_lose_the_log_of_the_vocabulary():
    loss = next_symbol_loss(torch.zeros(2, 3, 11), torch.randint(11, (2, 3)))
    assert loss.item() == pytest.approx(math.log(11))


@pytest.mark.parametrize(("steps", "rise"), [(100, 10), (20, 2), (3, 1), (1, 1)])
def test_the_step_size_rises_then_falls_to_its_last_share(steps, rise):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule, rates = warmup_cosine(optimizer, steps, last=0.2), []
    for _ in range(steps + 1):
        rates.append(schedule.get_last_lr()[0] / 2)
        optimizer.step()
        schedule.step()
    assert rates[:rise] == pytest.approx([(t + 1) / rise for t in range(rise)])
    falling = rates[rise:]
    assert falling == sorted(falling, reverse=True)
    if steps > 1:
        assert falling[0] == pytest.approx(1)
        assert falling[-1] == pytest.approx(0.2)
        middle = rise + (steps - rise) // 2
        assert rates[middle] == pytest.approx(
            0.2 + 0.4 * (1 + math.cos(math.pi * (middle - rise) / (steps - rise)))
        )
