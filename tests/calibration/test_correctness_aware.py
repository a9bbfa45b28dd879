"""Correctness-aware calibration: its loss and features by hand, invariances, guards and bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from trueup.calibration import CorrectnessAwareCalibrator, correctness_aware_loss, view_features
from trueup.calibration import _correctness_aware as method

FAST = {"max_iter": 25, "random_state": 0}


def problem(rows=300, classes=5, views=3, scale=3.0, dtype=torch.float64):
    """Overconfident logits of a classifier that is right about three times in four, and noisy views."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, classes, (rows,), generator=generator)
    signal = 2 * torch.nn.functional.one_hot(target, classes).to(dtype)
    noise = torch.randn(1 + views, rows, classes, generator=generator, dtype=dtype)
    logits, *view_logits = scale * (signal + noise)
    return logits, target, torch.stack(view_logits)


def first_network(features):
    """The network with which a fit with random_state=0 starts."""
    generator = torch.Generator().manual_seed(int(np.random.RandomState(0).randint(2**31)))
    return method.new_network(features, 5, generator)


def softmax(row):
    e = np.exp(np.asarray(row, dtype=np.float64) - np.max(row))
    return e / e.sum()


# ---- features ----


def test_features_by_hand():
    logits, _, views = problem(rows=7, classes=6, views=2)
    want = []
    for i in range(7):
        best = np.argsort(-logits[i].numpy())[:3]
        want.append(np.concatenate([softmax(view[i])[best] for view in views.numpy()]))
    np.testing.assert_allclose(view_features(logits, views, 3), want, rtol=1e-12)


def test_features_of_wide_and_of_impossible_logits_are_exact():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    views = torch.tensor([[[1e4, 0.0, -1e4]], [[0.0, -torch.inf, 0.0]]])
    torch.testing.assert_close(view_features(logits, views, 2), torch.tensor([[1.0, 0.0, 0.5, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_computed_in_float32(dtype):
    logits, _, views = problem(rows=6)
    logits, views = logits.to(dtype), views.to(dtype)
    features = view_features(logits, views)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, view_features(logits.float(), views.float()))


def test_features_of_noncontiguous_logits():
    logits, _, views = problem(rows=6)
    columns = logits.T.contiguous().T
    view_columns = views.movedim(0, 2).contiguous().movedim(2, 0)
    torch.testing.assert_close(view_features(columns, view_columns), view_features(logits, views))


# ---- loss ----


@pytest.mark.parametrize("loss", ["mse", "abs"])
def test_loss_by_hand(loss):
    confidence = torch.tensor([0.9, 0.7, 0.4, 0.8, 0.6], dtype=torch.float64)
    correct = torch.tensor([True, False, True, True, False])
    right, wrong = [0.1, 0.6, 0.2], [0.7, 0.6]
    if loss == "mse":
        right, wrong = ([error**2 for error in group] for group in (right, wrong))
    mean = (sum(right) + sum(wrong)) / 5
    balanced = (sum(right) / 3 + sum(wrong) / 2) / 2  # both groups count alike
    for variant, want in (("paper", mean), ("official", balanced)):
        for labels in (correct, correct.long(), correct.double()):
            got = correctness_aware_loss(confidence, labels, loss=loss, variant=variant)
            assert float(got) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("correct", [0, 1])
@pytest.mark.parametrize("rows", [1, 4])
def test_without_right_or_wrong_answers_the_balanced_loss_is_the_mean(correct, rows):
    confidence = torch.linspace(0.3, 0.9, rows, requires_grad=True)
    labels = torch.full((rows,), correct)
    balanced = correctness_aware_loss(confidence, labels, variant="official")
    want = (confidence.detach() - correct).square().mean()
    assert balanced.item() == pytest.approx(float(want))
    (gradient,) = torch.autograd.grad(balanced, confidence)
    torch.testing.assert_close(gradient, 2 * (confidence.detach() - correct) / rows)


@pytest.mark.parametrize("loss", ["mse", "abs"])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_gradients_of_the_loss(loss, variant):
    confidence = torch.tensor([0.9, 0.7, 0.4], dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([1, 0, 1])
    assert torch.autograd.gradcheck(
        lambda c: correctness_aware_loss(c, correct, loss=loss, variant=variant), confidence
    )


def test_half_confidence_is_averaged_in_float32():
    confidence = torch.tensor([0.9, 0.5], dtype=torch.bfloat16)
    got = correctness_aware_loss(confidence, torch.tensor([1, 0]))
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float((confidence.float() - torch.tensor([1.0, 0.0])).square().mean()))


# ---- training ----


def test_training_descends_the_equation():
    logits, target, views = problem()
    calibrator = CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=views)
    start = first_network(view_features(logits, views))
    first = method.objective(start, logits, views, target, 4, (0.1, 10.0)).item()
    last = method.objective(calibrator.network_, logits, views, target, 4, (0.1, 10.0)).item()
    assert calibrator.loss_curve_[0] == pytest.approx(first, rel=1e-12)
    assert len(calibrator.loss_curve_) == calibrator.n_iter_ == 25
    assert last < calibrator.loss_curve_[-1] < first


def test_first_update_follows_the_gradient_of_the_equation():
    logits, target, views = problem(rows=50)
    calibrator = CorrectnessAwareCalibrator(lr=0.01, max_iter=1, random_state=0)
    calibrator.fit(logits, target, view_logits=views)
    network = first_network(view_features(logits, views))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    method.objective(network, logits, views, target, 4, (0.1, 10.0)).backward()
    optimizer.step()
    for ours, theirs in zip(calibrator.network_.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_cross_entropy_is_that_of_torch():
    logits, target, views = problem()
    calibrator = CorrectnessAwareCalibrator(loss="cross_entropy", max_iter=1, random_state=0)
    calibrator.fit(logits, target, view_logits=views)
    temperature = first_network(view_features(logits, views))(view_features(logits, views)).clamp(0.1, 10)
    want = torch.nn.functional.cross_entropy(logits / temperature, target)
    assert calibrator.loss_curve_[0] == pytest.approx(want.item(), rel=1e-12)


def test_fit_finds_the_temperature_that_overconfident_logits_lack():
    # Classes are Gaussian with unit variance and means 2 apart: 2 * x are the logits of the posterior.
    logits, target, _ = problem(rows=4000, scale=5.0, dtype=torch.float32)
    calibrator = CorrectnessAwareCalibrator(lr=0.02, max_iter=150, random_state=0).fit(logits, target)
    assert float(calibrator.temperature(logits).median()) == pytest.approx(2.5, rel=0.15)


def test_balanced_loss_lowers_confidence_towards_one_half():
    logits, target, _ = problem(rows=1000)
    accuracy = float((logits.argmax(1) == target).double().mean())
    assert accuracy > 0.65
    confidence = {}
    for variant in ("paper", "official"):
        calibrator = CorrectnessAwareCalibrator(variant=variant, lr=0.02, max_iter=150, random_state=0)
        probs = calibrator.fit(logits, target).predict_proba(logits)
        confidence[variant] = float(probs.amax(1).mean())
    assert confidence["paper"] == pytest.approx(accuracy, abs=0.04)
    assert confidence["official"] < accuracy - 0.1


def test_views_that_disagree_raise_the_temperature():
    logits, target, _ = problem(rows=1000, scale=2.0)
    wrong = logits.argmax(1) != target
    view = torch.where(wrong[:, None], logits.flip(1), logits)[None]  # changes its mind where it is wrong
    calibrator = CorrectnessAwareCalibrator(lr=0.02, max_iter=150, random_state=0)
    temperature = calibrator.fit(logits, target, view_logits=view).temperature(logits, view_logits=view)
    assert temperature[wrong].mean() > 1.5 * temperature[~wrong].mean()


@pytest.mark.parametrize("max_iter", [1, 7])
def test_more_rows_than_a_batch(max_iter):
    logits, target, views = problem(rows=95)
    calibrator = CorrectnessAwareCalibrator(max_iter=max_iter, batch_size=30, random_state=0)
    calibrator.fit(logits, target, view_logits=views)
    assert len(calibrator.loss_curve_) == calibrator.n_iter_ == max_iter


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_weight_of_two_counts_as_two_samples_and_of_zero_as_none(variant):
    logits, target, views = problem(rows=60)
    weight = np.tile([0, 1, 2], 20)
    rows = np.repeat(np.arange(60), weight)
    calibrator = CorrectnessAwareCalibrator(variant=variant, **FAST)
    got = calibrator.fit(logits, target, weight, view_logits=views).transform(logits, view_logits=views)
    calibrator.fit(logits[rows], target[rows], view_logits=views[:, rows])
    torch.testing.assert_close(got, calibrator.transform(logits, view_logits=views), rtol=1e-8, atol=1e-8)


def test_random_state_decides_and_the_global_generator_does_not_count():
    logits, target, views = problem(rows=80)
    before = torch.get_rng_state()
    first, second, other = (
        CorrectnessAwareCalibrator(max_iter=5, batch_size=30, random_state=seed)
        .fit(logits, target, view_logits=views)
        .temperature(logits, view_logits=views)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


# ---- what fit and transform take and return ----


def test_answers_never_change_and_temperatures_stay_within_bounds():
    logits, target, views = problem()
    calibrator = CorrectnessAwareCalibrator(t_bounds=(0.9, 1.1), lr=0.05, **FAST)
    with pytest.warns(UserWarning, match="have reached t_bounds"):
        calibrator.fit(logits, target, view_logits=views)
    temperature = calibrator.temperature(logits, view_logits=views)
    calibrated = calibrator.transform(logits, view_logits=views)
    assert temperature.min() >= 0.9
    assert temperature.max() == 1.1
    assert torch.equal(calibrated.argmax(1), logits.argmax(1))
    torch.testing.assert_close(calibrated, logits / temperature[:, None])
    torch.testing.assert_close(calibrator.predict_proba(logits, view_logits=views), calibrated.softmax(1))


def test_constants_and_the_order_of_classes_do_not_count():
    logits, target, views = problem()
    order = torch.tensor([3, 0, 4, 1, 2])
    shift = torch.linspace(-5, 5, 300, dtype=torch.float64)[:, None]
    calibrator = CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=views)
    want = calibrator.temperature(logits, view_logits=views)
    moved, views_moved = (logits + shift)[:, order], (views - shift)[..., order]
    calibrator.fit(moved, order.argsort()[target], view_logits=views_moved)
    torch.testing.assert_close(calibrator.temperature(moved, view_logits=views_moved), want)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_arrays_and_tensors_give_their_own_kind(dtype):
    logits, target, views = (t.numpy() for t in problem(rows=50))
    logits = logits.astype(dtype)  # views are converted
    calibrator = CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=views)
    of_array = calibrator.transform(logits, view_logits=views)
    of_tensor = calibrator.transform(torch.tensor(logits), view_logits=torch.tensor(views))
    assert isinstance(of_array, np.ndarray)
    assert isinstance(of_tensor, torch.Tensor)
    assert of_array.dtype == (np.float32 if dtype == np.float16 else dtype)
    np.testing.assert_array_equal(of_tensor.numpy(), of_array)
    assert isinstance(calibrator.predict_proba(logits, view_logits=views), np.ndarray)
    assert isinstance(calibrator.temperature(logits, view_logits=views), np.ndarray)


def test_positions_are_rows():
    logits, target, views = problem(rows=60)
    flat = CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=views)
    want = flat.transform(logits, view_logits=views)
    maps = logits.view(10, 2, 3, 5).movedim(-1, 1)
    view_maps = views.view(3, 10, 2, 3, 5).movedim(-1, 2)
    calibrator = CorrectnessAwareCalibrator(**FAST).fit(maps, target.view(10, 2, 3), view_logits=view_maps)
    got = calibrator.transform(maps, view_logits=view_maps)
    torch.testing.assert_close(got.movedim(1, -1).reshape(60, 5), want)
    assert calibrator.temperature(maps, view_logits=view_maps).shape == (10, 2, 3)
    probs = calibrator.predict_proba(maps, view_logits=view_maps)
    torch.testing.assert_close(probs, got.softmax(1))


def test_binary_logits_are_two_classes():
    logits, target, views = problem(rows=60, classes=2)
    score, view_scores = logits[:, 1] - logits[:, 0], views[..., 1] - views[..., 0]
    two = CorrectnessAwareCalibrator(topk=2, **FAST).fit(logits, target, view_logits=views)
    one = CorrectnessAwareCalibrator(topk=2, **FAST).fit(score, target, view_logits=view_scores)
    want = two.predict_proba(logits, view_logits=views)[:, 1]
    torch.testing.assert_close(one.predict_proba(score, view_logits=view_scores), want)
    assert one.transform(score, view_logits=view_scores).shape == (60,)


def test_without_views_the_features_are_those_of_the_logits():
    logits, target, _ = problem()
    without = CorrectnessAwareCalibrator(**FAST).fit(logits, target)
    itself = CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=logits[None])
    torch.testing.assert_close(without.transform(logits), itself.transform(logits, view_logits=logits[None]))
    assert (without.n_views_, itself.n_views_) == (0, 1)
    log_probs = without.predict_proba(logits).log().gather(1, target[:, None])
    assert without.score(logits, target) == pytest.approx(float(log_probs.mean()))


def test_impossible_classes_are_left_out():
    logits, target, views = problem(classes=4)
    padded, padded_views = (torch.nn.functional.pad(t, (0, 1), value=-torch.inf) for t in (logits, views))
    calibrator = CorrectnessAwareCalibrator(**FAST)
    want = calibrator.fit(logits, target, view_logits=views).temperature(logits, view_logits=views)
    calibrator.fit(padded, target, view_logits=padded_views)
    torch.testing.assert_close(calibrator.temperature(padded, view_logits=padded_views), want)


def test_one_sample_can_be_calibrated():
    logits, target, views = problem()
    calibrator = CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=views)
    one = calibrator.transform(logits[:1], view_logits=views[:, :1])
    torch.testing.assert_close(one, calibrator.transform(logits, view_logits=views)[:1])


# ---- guards ----


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("rows", [1, 20])
def test_all_right_or_all_wrong_leaves_the_logits_alone(right, rows):
    logits, _, views = problem(rows=rows)
    target = logits.argmax(1) if right else logits.argmin(1)
    calibrator = CorrectnessAwareCalibrator(random_state=0)
    with pytest.warns(UserWarning, match=f"all {rows} answers are {'right' if right else 'wrong'}"):
        calibrator.fit(logits, target, view_logits=views)
    assert torch.equal(calibrator.transform(logits, view_logits=views), logits)
    assert (calibrator.n_iter_, calibrator.loss_curve_) == (0, [])


def test_collapse_to_a_bound_warns():
    logits, _, views = problem(rows=200)
    target = logits.argmax(1)
    target[0] = (target[0] + 1) % 5
    calibrator = CorrectnessAwareCalibrator(lr=0.05, max_iter=200, random_state=0)
    with pytest.warns(UserWarning, match="have reached t_bounds.* 1 of 200 answers are wrong"):
        calibrator.fit(logits, target, view_logits=views)


def test_no_warning_where_nothing_is_wrong():
    logits, target, views = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=views)


# ---- bad input ----


def test_not_fitted():
    logits, _, views = problem(rows=5)
    for call in ("transform", "predict_proba", "temperature"):
        with pytest.raises(NotFittedError):
            getattr(CorrectnessAwareCalibrator(), call)(logits, view_logits=views)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"topk": 0}, "topk must be a whole number"),
        ({"topk": 6}, "topk must be between 1 and the 5 classes; got 6: pass topk=4"),
        ({"hidden": 0}, "hidden must be a whole number"),
        ({"max_iter": 2.5}, "max_iter must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"lr": 0.0}, "lr must be a finite number above 0"),
        ({"lr": "fast"}, "lr must be a finite number above 0"),
        ({"t_bounds": (0.0, 10.0)}, "t_bounds must be"),
        ({"t_bounds": (1.5, 10.0)}, "t_bounds must be"),
        ({"t_bounds": (0.1, float("nan"))}, "t_bounds must be"),
        ({"loss": "l1"}, "loss must be one of"),
        ({"variant": "balanced"}, "variant must be one of"),
    ],
)
def test_bad_settings(setting, message):
    logits, target, views = problem(rows=20)
    with pytest.raises(ValueError, match=message):
        CorrectnessAwareCalibrator(**setting).fit(logits, target, view_logits=views)


def test_bad_data():
    logits, target, views = problem(rows=20)
    calibrator = CorrectnessAwareCalibrator(**FAST)
    spoilt = views.clone()
    spoilt[1, 3, 2] = torch.nan
    bad = [
        (logits, target, views[:, :10], "stack the views along dimension 0"),
        (logits, target, views[0], "stack the views along dimension 0"),
        (logits, target, views[:0], "stack the views along dimension 0"),
        (logits, target, views[..., :4], "stack the views along dimension 0"),
        (logits, target, spoilt, "NaN"),
        (logits * torch.inf, target, views, "NaN|inf"),
        (logits, target + 1, views, r"target must be in \[0, 5\)"),
        (logits, target[:7], views, "must have shape"),
        (logits[:0], target[:0], views[:, :0], "at least one row"),
        (logits[:, :1], target, views[..., :1], "two classes"),
        (logits[:, :3], target.clamp(max=2), views[..., :3], "pass topk=3"),
    ]
    for z, y, v, message in bad:
        with pytest.raises(ValueError, match=message):
            calibrator.fit(z, y, view_logits=v)
    with pytest.raises(TypeError, match=r"convert with .float\(\)"):
        calibrator.fit(logits, target, view_logits=views.long())
    with pytest.raises(TypeError, match=r"convert with .float\(\)"):
        calibrator.fit(logits.long(), target, view_logits=views)


def test_transform_needs_the_views_of_fit():
    logits, target, views = problem(rows=20)
    calibrator = CorrectnessAwareCalibrator(**FAST).fit(logits, target, view_logits=views)
    for wrong in (None, views[:2]):
        with pytest.raises(ValueError, match="fitted with 3 views"):
            calibrator.transform(logits, view_logits=wrong)
    with pytest.raises(ValueError, match="expecting 5"):
        calibrator.transform(logits[:, :4], view_logits=views[..., :4])


@pytest.mark.bad_input
def test_bad_arguments_of_the_functions():
    logits, _, views = problem(rows=4)
    with pytest.raises(ValueError, match="stack the views"):
        view_features(logits, views[0])
    with pytest.raises(ValueError, match="topk must be between"):
        view_features(logits, views, 0)
    with pytest.raises(TypeError, match="view_logits must be floating point"):
        view_features(logits, views.long())
    confidence = torch.tensor([0.5, 0.6])
    with pytest.raises(ValueError, match="flatten them"):
        correctness_aware_loss(confidence, torch.tensor([1]))
    with pytest.raises(ValueError, match="flatten them"):
        correctness_aware_loss(confidence[:0], torch.tensor([]))
    with pytest.raises(TypeError, match="confidence must be floating point"):
        correctness_aware_loss(torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(ValueError, match="loss must be one of"):
        correctness_aware_loss(confidence, confidence, loss="mae")
    with pytest.raises(ValueError, match="variant must be one of"):
        correctness_aware_loss(confidence, confidence, variant="balanced")
