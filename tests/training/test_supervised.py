import pytest
import torch
from torch import nn

from trueup.training import evaluate, minibatches, train


def test_minibatches_cover_each_epoch_once_and_leave_the_short_rest_out():
    batches = list(minibatches(10, 3, 2, torch.Generator().manual_seed(0)))
    assert [len(b) for b in batches] == [3] * 6
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 9
    assert first.tolist() != second.tolist()


def test_the_same_generator_state_gives_the_same_batches():
    one, two = (torch.cat(list(minibatches(8, 4, 3, torch.Generator().manual_seed(5)))) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="between 1 and the 10 rows"):
        list(minibatches(10, size, 1, torch.Generator()))


def test_train_equals_the_loop_anyone_would_write():
    torch.manual_seed(0)
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.SGD(ours.parameters(), 0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    updates = list(train(ours, [(x, y)] * 5, optimizer, max_norm=0.1, scheduler=schedule))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.5, momentum=0.9)
    for i in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(theirs(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        assert updates[i].loss == pytest.approx(loss.item())
        assert updates[i].grad_norm == pytest.approx(norm.item())
        optimizer.step()
        if i % 2:
            optimizer.param_groups[0]["lr"] *= 0.1
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_training_stops_when_the_caller_stops():
    net, x, y = nn.Linear(2, 2), torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    loop = train(net, [(x, y)] * 3, torch.optim.SGD(net.parameters(), 0.1))
    next(loop)
    after_one = net.weight.detach().clone()
    loop.close()
    assert torch.equal(net.weight, after_one)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_uses_running_statistics_and_restores_the_mode(training):
    net = nn.Sequential(nn.BatchNorm1d(2)).train(training)
    x, y = torch.randn(10, 2) + 5, torch.zeros(10, dtype=torch.long)
    before = net[0].running_mean.clone()
    got = evaluate(net, x, y, batch_size=3)
    assert net.training is training
    assert torch.equal(net[0].running_mean, before)
    logits = nn.functional.batch_norm(x, torch.zeros(2), torch.ones(2))
    assert got["nll"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert got["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
