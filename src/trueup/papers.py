"""The catalogue: the fifty papers of this library, in order, and the only registry there is.

A record names what implements the paper as text, so that listing the catalogue imports neither torch nor
any area. A paper is `available` when it has public names and `planned` until then; nobody types that state.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

__all__ = ["CATALOGUE", "Fidelity", "Paper", "get"]

Fidelity = Literal["official", "independent", "derived", "reconstructed"]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper: what it treats, who wrote it, and which public names implement it.

    Attributes:
        slug: names the study, the reference values and the method card.
        title: the paper's title.
        authors: full names in the paper's order, separated by commas.
        year: of publication at `venue`, or of the preprint where there is no venue.
        arxiv: arXiv identifier, without the version.
        problem: the practitioner's problem, in one line.
        area: the sub-package that holds the method.
        fidelity: what the values are held against. `official`: equal to the official code's;
            `independent`: to another trusted implementation's; `derived`: to a closed form or brute
            force of the paper's equations; `reconstructed`: the equations themselves are not confirmed.
        reference: the same in a line: whose code, which part of it, and what is missing.
        venue: where the paper was published; empty for a preprint.
        names: public dotted names, the most important one first; empty while the paper is planned.
        usage: three lines of code that use the method, given `import torch, trueup`; empty while planned.

    Example:
        >>> paper = get("adamp")
        >>> paper.names[0], paper.state, paper.fidelity
        ('trueup.optim.AdamP', 'available', 'official')
        >>> paper.study
        'trueup.studies.adamp'
    """

    slug: str
    title: str
    authors: str
    year: int
    arxiv: str
    problem: str
    area: str
    fidelity: Fidelity
    reference: str
    venue: str = ""
    names: tuple[str, ...] = ()
    usage: str = ""

    @property
    def state(self) -> Literal["available", "planned"]:
        """`available` if and only if public names implement the paper."""
        return "available" if self.names else "planned"

    @property
    def reconstructed(self) -> bool:
        """A method is there, but its equations are not confirmed: to be said wherever it is shown."""
        return self.state == "available" and self.fidelity == "reconstructed"

    @property
    def study(self) -> str:
        """Dotted name of the paper's study module; it exists once the paper is available."""
        return f"trueup.studies.{self.slug.replace('-', '_')}"

    @property
    def url(self) -> str:
        """Address of the paper's abstract page."""
        return f"https://arxiv.org/abs/{self.arxiv}"


def get(slug: str) -> Paper:
    """The record of the paper `slug`.

    Raises:
        ValueError: if no paper has this slug; the message suggests the nearest one.

    Example:
        >>> get("ghost-batch-norm").year
        2017
        >>> get("adamw")
        Traceback (most recent call last):
        ...
        ValueError: no paper is called 'adamw'; did you mean 'adamp'? `trueup list` shows all fifty
    """
    try:
        return _BY_SLUG[slug]
    except KeyError:
        near = difflib.get_close_matches(slug.lower().replace("_", "-"), _BY_SLUG, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no paper is called {slug!r}; {hint}`trueup list` shows all fifty") from None


CATALOGUE: tuple[Paper, ...] = (
    Paper(
        slug="layer-norm",
        title="Layer Normalization",
        authors="Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton",
        year=2016,
        arxiv="1607.06450",
        problem="training depends on the mini-batch: recurrent nets and tiny batches suffer",
        area="nn",
        fidelity="official",
        reference="the authors' Theano layers, GRU and LSTM (ryankiros/layer-norm)",
        names=(
            "trueup.nn.LayerNormLSTM",
            "trueup.nn.LayerNormGRU",
            "trueup.nn.LayerNormRNN",
            "trueup.nn.LayerNormLSTMCell",
            "trueup.nn.LayerNormGRUCell",
            "trueup.nn.LayerNormRNNCell",
        ),
        usage=(
            "lstm = trueup.nn.LayerNormLSTM(4, 32, batch_first=True)  # in nn.LSTM's place\n"
            "outputs, (h, c) = lstm(inputs)  # (batch, time, 4), or one sequence: (time, 4)\n"
            "outputs, (h, c) = lstm(inputs[None], lengths=[50])  # or mask=, or packed"
        ),
    ),
    Paper(
        slug="adamp",
        title="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        authors=(
            "Byeongho Heo, Sanghyuk Chun, Seong Joon Oh, Dongyoon Han, Sangdoo Yun, Gyuwan Kim, Youngjung "
            "Uh, Jung-Woo Ha"
        ),
        year=2021,
        arxiv="2006.08217",
        problem="momentum makes the effective step size of scale-invariant weights decay too fast",
        area="optim",
        fidelity="official",
        reference="the classes AdamP and SGDP of adamp 0.3.0 (clovaai/AdamP), step by step",
        venue="ICLR",
        names=(
            "trueup.optim.AdamP",
            "trueup.optim.SGDP",
            "trueup.optim.project_radial",
        ),
        usage=(
            "optimizer = trueup.optim.AdamP(model.parameters(), lr=1e-3, weight_decay=1e-2)\n"
            "loss(model(inputs), targets).backward()\n"
            "optimizer.step()"
        ),
    ),
    Paper(
        slug="power-norm",
        title="PowerNorm: Rethinking Batch Normalization in Transformers",
        authors="Sheng Shen, Zhewei Yao, Amir Gholami, Michael W. Mahoney, Kurt Keutzer",
        year=2020,
        arxiv="2003.07845",
        problem="batch statistics of text fluctuate, so batch normalisation fails in transformers",
        area="nn",
        fidelity="official",
        reference="MaskPowerNorm (sIncerass/powernorm), forward, backward and buffers",
        venue="ICML",
        names=(
            "trueup.nn.PowerNorm1d",
            "trueup.nn.PowerNorm2d",
            "trueup.nn.power_norm",
        ),
        usage=(
            "norm = trueup.nn.PowerNorm1d(inputs.shape[-1], group_num=2, warmup_iters=4000)\n"
            "outputs = norm(inputs)  # (batch, time, C) with key_padding_mask=, or (N, C)\n"
            "loss(outputs, targets).backward()  # moves the running gradient term too"
        ),
    ),
    Paper(
        slug="weight-compander",
        title="Weight Compander: A Simple Weight Reparameterization for Regularization",
        authors="Rinor Cakaj, Jens Mehnert, Bin Yang",
        year=2023,
        arxiv="2306.16993",
        problem="large weights and many near-zero weights: over-fitting",
        area="nn",
        fidelity="reconstructed",
        reference=(
            "no code was published and only the abstract could be read: a closed form of the function it "
            "describes"
        ),
        venue="IJCNN",
        names=(
            "trueup.nn.WeightCompander",
            "trueup.nn.weight_compand",
            "trueup.nn.inverse_weight_compand",
            "trueup.nn.weight_compander_param_groups",
            "trueup.nn.weight_stats",
            "trueup.nn.parametrize_weights",
            "trueup.nn.bake",
        ),
        usage=(
            "compander, kind = trueup.nn.WeightCompander, torch.nn.Linear\n"
            "model = trueup.nn.parametrize_weights(model, compander, types=kind)\n"
            "plain = trueup.nn.bake(model)  # after training"
        ),
    ),
    Paper(
        slug="mtard",
        title="Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation",
        authors="Shiji Zhao, Xizhe Wang, Xingxing Wei",
        year=2024,
        arxiv="2306.16170",
        problem="adversarial training costs clean accuracy",
        area="distillation",
        fidelity="official",
        reference="the balancing block and inner attack (zhaoshiji123/MTARD-extension and MTARD)",
        venue="IEEE TPAMI",
    ),
    Paper(
        slug="alpha-bn",
        title="Test-time Batch Statistics Calibration for Covariate Shift",
        authors="Fuming You, Jingjing Li, Zhou Zhao",
        year=2021,
        arxiv="2110.04065",
        problem="deployment data has shifted; batch-norm statistics are those of the training data",
        area="adaptation",
        fidelity="reconstructed",
        reference=(
            "no official code: alpha-BN agrees with an independent layer "
            "(mariodoebler/test-time-adaptation), but how the paper normalises the Core loss is not "
            "confirmed"
        ),
    ),
    Paper(
        slug="pa-da",
        title="PA&DA: Jointly Sampling PAth and DAta for Consistent NAS",
        authors="Shun Lu, Yu Hu, Longxing Yang, Zihao Sun, Jilin Mei, Jianchao Tan, Chengru Song",
        year=2023,
        arxiv="2302.14772",
        problem=(
            "shared weights of a one-shot supernet get high-variance gradients, so it ranks architectures "
            "badly"
        ),
        area="nas",
        fidelity="official",
        reference="the path and data sampling of the NAS-Bench-201 supernet (ShunLu91/PA-DA)",
        venue="CVPR",
    ),
    Paper(
        slug="bn-only",
        title="Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs",
        authors="Jonathan Frankle, David J. Schwab, Ari S. Morcos",
        year=2021,
        arxiv="2003.00152",
        problem="how much can be learnt (or tuned) with the affine parameters of normalisation alone",
        area="nn",
        fidelity="official",
        reference="the authors' framework (facebookresearch/open_lth) with its freezing switches",
        venue="ICLR",
        names=(
            "trueup.nn.freeze_all_but_norm_affine",
            "trueup.nn.reinit_norm_affine",
            "trueup.nn.train_only",
            "trueup.nn.random_parameter_mask",
            "trueup.nn.train_masked",
            "trueup.nn.norm_affine_report",
        ),
        usage=(
            "trueup.nn.reinit_norm_affine(model)\n"
            "trueup.nn.freeze_all_but_norm_affine(model, train_output=True)\n"
            "print(trueup.nn.norm_affine_report(model))  # after training"
        ),
    ),
    Paper(
        slug="dataset-distillation",
        title=(
            "Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert "
            "Trajectories"
        ),
        authors="Jiyuan Shen, Wenzhuo Yang, Kwok-Yan Lam",
        year=2023,
        arxiv="2310.10541",
        problem="the training set is too large to train on again and again",
        area="coreset",
        fidelity="official",
        reference=(
            "the authors' trajectory matching (shenjiyuan123/AST-Alignment-with-Smooth-Expert), its loop "
            "re-run statement by statement"
        ),
    ),
    Paper(
        slug="ps-kd",
        title="Self-Knowledge Distillation with Progressive Refinement of Targets",
        authors="Kyungyul Kim, ByeongMoon Ji, Doyoung Yoon, Sangheum Hwang",
        year=2021,
        arxiv="2006.12000",
        problem="hard targets make nets over-confident and noise-sensitive; no teacher at hand",
        area="distillation",
        fidelity="official",
        reference="the loss, training loop and metrics (lgcnsai/PS-KD-Pytorch)",
        venue="ICCV",
    ),
    Paper(
        slug="fast-certified",
        title="Fast Certified Robust Training with Short Warmup",
        authors="Zhouxing Shi, Yihan Wang, Huan Zhang, Jinfeng Yi, Cho-Jui Hsieh",
        year=2021,
        arxiv="2103.17268",
        problem="certified training needs very long warm-up and is unstable",
        area="robustness",
        fidelity="official",
        reference=(
            "the authors' regularisers and initialisation (shizhouxing/Fast-Certified-Robust-Training), "
            "with bounds of auto_LiRPA 0.7.1"
        ),
        venue="NeurIPS",
    ),
    Paper(
        slug="layernorm-scaling",
        title="The Curse of Depth in Large Language Models",
        authors="Wenfang Sun, Xinyuan Song, Pengxiang Li, Lu Yin, Yefeng Zheng, Shiwei Liu",
        year=2025,
        arxiv="2502.05795",
        problem="deep layers of a Pre-LN language model contribute almost nothing",
        area="nn",
        fidelity="official",
        reference="the authors' Llama (lmsdss/LayerNorm-Scaling), forward and gradients",
        venue="NeurIPS",
    ),
    Paper(
        slug="nd-loss",
        title="Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
        authors="Yuzhu Wang, Lechao Cheng, Manni Duan, Yongheng Wang, Zunlei Feng, Shu Kong",
        year=2024,
        arxiv="2305.17007",
        problem="matching teacher features does not help the student classify",
        area="distillation",
        fidelity="official",
        reference="DirectNormLoss, KDLoss and DKDLoss (WangYZ1608/Knowledge-Distillation-via-ND)",
        venue="ECCV",
    ),
    Paper(
        slug="evonorm",
        title="Evolving Normalization-Activation Layers",
        authors="Hanxiao Liu, Andrew Brock, Karen Simonyan, Quoc V. Le",
        year=2020,
        arxiv="2004.02967",
        problem="normalisation and activation are designed apart; batch-free normalisation lags behind",
        area="nn",
        fidelity="independent",
        reference=(
            "timm's EvoNorm2d layers; the official TensorFlow code, which holds B0 and S0 only, was read "
            "and not run"
        ),
        venue="NeurIPS",
        names=(
            "trueup.nn.EvoNorm2dB0",
            "trueup.nn.EvoNorm2dB1",
            "trueup.nn.EvoNorm2dB2",
            "trueup.nn.EvoNorm2dS0",
            "trueup.nn.EvoNorm2dS1",
            "trueup.nn.EvoNorm2dS2",
            "trueup.nn.EvoNorm2dS0a",
            "trueup.nn.EvoNorm2dS1a",
            "trueup.nn.EvoNorm2dS2a",
            "trueup.nn.evonorm_b",
            "trueup.nn.evonorm_s",
        ),
        usage=(
            "norm_act = trueup.nn.EvoNorm2dS0(8, groups=4)  # for a norm AND its activation\n"
            "images = inputs.view(2, 8, 4, 4)\n"
            "y = norm_act(images)"
        ),
    ),
    Paper(
        slug="peri-ln",
        title="Peri-LN: Revisiting Layer Normalization in the Transformer Architecture",
        authors=(
            "Jeonghoon Kim, Byeongchan Lee, Cheonbok Park, Yeontaek Oh, Beomjun Kim, Taehwan Yoo, "
            "Seongjin Shin, Dongyoon Han, Jinwoo Shin, Kang Min Yoo"
        ),
        year=2025,
        arxiv="2502.02732",
        problem="massive activations and vanishing gradients at scale, depending on where the norms sit",
        area="nn",
        fidelity="independent",
        reference=(
            "HyperCLOVA X, Gemma-2, OLMo-2, Llama, GPT-2 and BERT of Hugging Face transformers; the paper "
            "has no code of its own"
        ),
        venue="ICML",
    ),
    Paper(
        slug="soundscape",
        title="Autonomous In-Situ Soundscape Augmentation via Joint Selection of Masker and Gain",
        authors="Karn N. Watcharasupat, Kenneth Ooi, Bhan Lam, Trevor Wong, Zhen-Ting Ong, Woon-Seng Gan",
        year=2022,
        arxiv="2204.13883",
        problem="which masking sound, at which level, makes a noisy place more pleasant",
        area="audio",
        fidelity="reconstructed",
        reference=(
            "the model's code could not be had: the pleasantness formula is official "
            "(ntudsp/araus-dataset-baseline-models), the attention model is a closed form of what the "
            "abstract describes"
        ),
        venue="IEEE Signal Processing Letters",
    ),
    Paper(
        slug="normalized-gd",
        title=(
            "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large "
            "Step Sizes"
        ),
        authors="Alexander Tyurin",
        year=2025,
        arxiv="2412.08424",
        problem="separable data: which step size, and is the loss a guide at all",
        area="optim",
        fidelity="derived",
        reference=(
            "a float64 program of the paper's equations, gradients checked by finite differences; no "
            "official code was found"
        ),
        venue="AAAI",
        names=(
            "trueup.optim.NormalizedGD",
            "trueup.optim.normalized_logistic_loss",
            "trueup.optim.misclassification_weights",
            "trueup.optim.large_step_descent",
            "trueup.optim.worst_case_problem",
            "trueup.estimators.LargeStepLogisticRegression",
        ),
        usage=(
            "signs = 2.0 * (targets > 0) - 1  # labels -1 and +1\n"
            "optimizer = trueup.optim.NormalizedGD(model.parameters(), lr=1.0)\n"
            "optimizer.step(lambda: signs * model(inputs)[:, 0])  # margins; no backward"
        ),
    ),
    Paper(
        slug="r3-reward",
        title="Preference-free Alignment Learning with Regularized Relevance Reward",
        authors="Sungdong Kim, Minjoon Seo",
        year=2024,
        arxiv="2402.03469",
        problem="reward models prefer long off-topic answers; no preference data at hand",
        area="alignment",
        fidelity="official",
        reference=(
            "the authors' reward code for the paper's later revision (naver-ai/rethinking-proxy-reward)"
        ),
        venue="EMNLP",
    ),
    Paper(
        slug="batch-channel-norm",
        title="Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
        authors="Siyuan Qiao, Huiyu Wang, Chenxi Liu, Wei Shen, Alan Yuille",
        year=2019,
        arxiv="1903.10520",
        problem="one or two images per device: batch statistics are useless",
        area="nn",
        fidelity="official",
        reference=(
            "BCNorm, EstBN and the weight-standardised convolution "
            "(joe-siyuan-qiao/Batch-Channel-Normalization)"
        ),
        names=(
            "trueup.nn.BatchChannelNorm1d",
            "trueup.nn.BatchChannelNorm2d",
            "trueup.nn.EstimatedBatchNorm1d",
            "trueup.nn.EstimatedBatchNorm2d",
            "trueup.nn.batch_channel_norm",
            "trueup.nn.estimated_batch_norm",
            "trueup.nn.WeightStandardization",
            "trueup.nn.standardize_weight",
            "trueup.nn.parametrize_weights",
            "trueup.nn.bake",
        ),
        usage=(
            "norm = trueup.nn.BatchChannelNorm2d(64, num_groups=32, estimate=True)\n"
            "ws, kind = trueup.nn.WeightStandardization, torch.nn.Linear  # goes with it\n"
            "model = trueup.nn.parametrize_weights(model, ws, types=kind)"
        ),
    ),
    Paper(
        slug="drm",
        title="Domain-Specific Risk Minimization for Out-of-Distribution Generalization",
        authors=(
            "Yi-Fan Zhang, Jindong Wang, Jian Liang, Zhang Zhang, Baosheng Yu, Liang Wang, Dacheng Tao, "
            "Xing Xie"
        ),
        year=2023,
        arxiv="2208.08661",
        problem="several source domains, and a target that is none of them",
        area="generalization",
        fidelity="official",
        reference="the class DRM and its test-time adaptation (yfzhang114/AdaNPC)",
        venue="KDD",
    ),
    Paper(
        slug="fedwon",
        title="FedWon: Triumphing Multi-domain Federated Learning Without Normalization",
        authors="Weiming Zhuang, Lingjuan Lyu",
        year=2024,
        arxiv="2306.05879",
        problem="clients' data come from different domains, so shared normalisation hurts",
        area="federated",
        fidelity="independent",
        reference=(
            "scaled weight standardisation and adaptive gradient clipping of DeepMind's nfnets, averaging "
            "of med-air/FedBN; no official code was found"
        ),
        venue="ICLR",
        names=(
            "trueup.federated.federated_average",
            "trueup.federated.broadcast_state",
            "trueup.nn.ScaledWeightStandardization",
            "trueup.nn.scaled_standardize_weight",
            "trueup.nn.activation_gain",
            "trueup.nn.adaptive_clip_grad_",
        ),
        usage=(
            "scaled, kind = trueup.nn.ScaledWeightStandardization, torch.nn.Linear\n"
            "client = trueup.nn.parametrize_weights(model, scaled, types=kind, gamma=1.0)\n"
            "server = trueup.federated.federated_average([client.state_dict()])  # of all"
        ),
    ),
    Paper(
        slug="ghost-batch-norm",
        title=(
            "Train longer, generalize better: closing the generalization gap in large batch training of "
            "neural networks"
        ),
        authors="Elad Hoffer, Itay Hubara, Daniel Soudry",
        year=2017,
        arxiv="1705.08741",
        problem="large batches generalise worse",
        area="nn",
        fidelity="official",
        reference=(
            "the training step and regime lines of main_gbn.py (eladhoffer/bigBatch), and torch's "
            "BatchNorm applied to each ghost batch in turn"
        ),
        venue="NeurIPS",
        names=(
            "trueup.nn.GhostBatchNorm1d",
            "trueup.nn.GhostBatchNorm2d",
            "trueup.nn.GhostBatchNorm3d",
            "trueup.nn.ghost_batch_norm",
            "trueup.nn.convert",
            "trueup.nn.convert_ghost_batchnorm",
            "trueup.optim.scale_lr",
            "trueup.optim.adapt_regime",
            "trueup.optim.ghost_accumulate",
            "trueup.optim.multiplicative_noise",
            "trueup.optim.DistanceFromInit",
        ),
        usage=(
            "model = trueup.nn.convert_ghost_batchnorm(model, ghost_batch_size=32)\n"
            "lr = trueup.optim.scale_lr(0.1, batch_size=4096, base_batch_size=128)\n"
            "milestones, epochs = trueup.optim.adapt_regime([80], 160, 4096, 128)"
        ),
    ),
    Paper(
        slug="calibration-benchmark",
        title="A Benchmark Study on Calibration",
        authors="Linwei Tao, Younan Zhu, Haolan Guo, Minjing Dong, Chang Xu",
        year=2024,
        arxiv="2308.11838",
        problem="which calibration measure to trust, and does calibration carry over",
        area="calibration",
        fidelity="independent",
        reference=(
            "the first author's library (Linwei94/calibrator), netcal, torchmetrics and brute force; the "
            "paper's measuring code was not published"
        ),
        venue="ICLR",
    ),
    Paper(
        slug="partial-correlation",
        title="Partial Correlations in Compositional Data Analysis",
        authors="Ionas Erb",
        year=2020,
        arxiv="1904.09480",
        problem="correlations between parts of a whole are spurious",
        area="estimators",
        fidelity="independent",
        reference=(
            "R's corpcor 1.6.10 and propr 5.1.8, and brute-force regressions of log-ratios over every "
            "reference; the paper has no code of its own"
        ),
        venue="Applied Computing and Geosciences",
        names=(
            "trueup.estimators.CompositionalPartialCorrelation",
            "trueup.estimators.clr",
            "trueup.estimators.alr",
            "trueup.estimators.ilr",
            "trueup.estimators.variation_matrix",
            "trueup.estimators.partial_correlation",
        ),
        usage=(
            "fit = trueup.estimators.CompositionalPartialCorrelation().fit(parts)\n"
            "fit.partial_correlation_  # of each pair of columns, given all others\n"
            "fit.test().adjusted_pvalue"
        ),
    ),
    Paper(
        slug="tleg",
        title="Transformer as Linear Expansion of Learngene",
        authors="Shiyu Xia, Miaosen Zhang, Xu Yang, Ruiming Chen, Haokun Chen, Xin Geng",
        year=2024,
        arxiv="2312.05614",
        problem="models of many depths are needed, each too costly to pre-train",
        area="learngene",
        fidelity="official",
        reference="the expansion, model and losses (AlphaXia/TLEG)",
        venue="AAAI",
    ),
    Paper(
        slug="crmsnorm",
        title="Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
        authors="Zixuan Jiang, Jiaqi Gu, Hanqing Zhu, David Z. Pan",
        year=2023,
        arxiv="2305.14858",
        problem="LayerNorm does redundant work in Pre-LN transformers",
        area="nn",
        fidelity="official",
        reference="the layers and the converted GPT (ZixuanJiang/pre-rmsnorm-transformer)",
        venue="NeurIPS",
    ),
    Paper(
        slug="nkd-uskd",
        title=(
            "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with "
            "Normalized Loss and Customized Soft Labels"
        ),
        authors="Zhendong Yang, Ailing Zeng, Zhe Li, Tianke Zhang, Chun Yuan, Yu Li",
        year=2023,
        arxiv="2303.13005",
        problem="student and teacher non-target logits cannot match; or there is no teacher",
        area="distillation",
        fidelity="official",
        reference="NKDLoss and USKDLoss (yzd-v/cls_KD)",
        venue="ICCV",
    ),
    Paper(
        slug="xmen",
        title="xMEN: A Modular Toolkit for Cross-Lingual Medical Entity Normalization",
        authors="Florian Borchert, Ignacio Llorca, Roland Roller, Bert Arnrich, Matthieu-P. Schapranow",
        year=2025,
        arxiv="2310.11275",
        problem="mentions of diseases and drugs must be linked to a terminology, in any language",
        area="text",
        fidelity="official",
        reference=(
            "the linkers, re-ranking and evaluation (hpi-dhc/xmen), and scispacy's candidate generator "
            "with an exact index"
        ),
        venue="JAMIA Open",
    ),
    Paper(
        slug="gbnn",
        title="Sequential Training of Neural Networks with Gradient Boosting",
        authors="Seyedsaman Emami, Gonzalo Martinez-Munoz",
        year=2023,
        arxiv="1909.12098",
        problem="one net, several sizes at test time; no architecture search",
        area="estimators",
        fidelity="official",
        reference="gbnn 0.0.2 (GAA-UAM/GBNN)",
        venue="IEEE Access",
    ),
    Paper(
        slug="stable-spam",
        title="Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam",
        authors=(
            "Tianjin Huang, Haotian Hu, Zhenyu Zhang, Gaojie Jin, Xiang Li, Li Shen, Tianlong Chen, Lu "
            "Liu, Qingsong Wen, Zhangyang Wang, Shiwei Liu"
        ),
        year=2025,
        arxiv="2502.17055",
        problem="4-bit training diverges: spikes and unstable gradient norms",
        area="optim",
        fidelity="official",
        reference="the classes StableSPAM and SPAM (TianjinYellow/StableSPAM), step by step",
        names=(
            "trueup.optim.StableSPAM",
            "trueup.optim.SPAM",
            "trueup.optim.AdaClip",
            "trueup.optim.AdaGN",
            "trueup.optim.MomentumReset",
            "trueup.quantization.quantize_linear_",
            "trueup.quantization.dequantize_",
            "trueup.quantization.FakeQuantLinear",
            "trueup.quantization.fake_quantize_fp4",
            "trueup.quantization.fake_quantize_int4",
            "trueup.quantization.fake_quantize_int4_symmetric",
        ),
        usage=(
            "trueup.quantization.quantize_linear_(model, 'fp4', group_size=4)  # optional\n"
            "optimizer = trueup.optim.StableSPAM(model.parameters(), lr=1e-3)\n"
            "loss(model(inputs), targets).backward(), optimizer.step()  # no clipping"
        ),
    ),
    Paper(
        slug="reward-transform",
        title="Transforming and Combining Rewards for Aligning Large Language Models",
        authors=(
            "Zihao Wang, Chirag Nagpal, Jonathan Berant, Jacob Eisenstein, Alex D'Amour, Sanmi Koyejo, "
            "Victor Veitch"
        ),
        year=2024,
        arxiv="2402.00742",
        problem="one high reward outweighs a failed one; reward hacking",
        area="alignment",
        fidelity="derived",
        reference="the closed form evaluated with forty digits; no official code was found",
        venue="ICML",
    ),
    Paper(
        slug="per-step-dpo",
        title="RL on Incorrect Synthetic Data Scales the Efficiency of LLM Math Reasoning by Eight-Fold",
        authors="Amrith Setlur, Saurabh Garg, Xinyang Geng, Naman Garg, Virginia Smith, Aviral Kumar",
        year=2024,
        arxiv="2406.14532",
        problem="which step of a wrong solution was wrong, and how to learn from it",
        area="alignment",
        fidelity="derived",
        reference=(
            "exact enumeration of small step-wise decision processes; the official repository holds no code"
        ),
        venue="NeurIPS",
    ),
    Paper(
        slug="salun",
        title=(
            "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image "
            "Classification and Generation"
        ),
        authors="Chongyu Fan, Jiancheng Liu, Yihua Zhang, Eric Wong, Dennis Wei, Sijia Liu",
        year=2024,
        arxiv="2310.12508",
        problem="a model must forget some of its data without being retrained",
        area="unlearning",
        fidelity="official",
        reference=(
            "the classification part (OPTML-Group/Unlearn-Saliency): mask, unlearning loops, membership "
            "attack"
        ),
        venue="ICLR",
    ),
    Paper(
        slug="calibration-sets",
        title=(
            "What are the Desired Characteristics of Calibration Sets? Identifying Correlates on Long "
            "Form Scientific Summarization"
        ),
        authors=(
            "Griffin Adams, Bichlien H Nguyen, Jake Smith, Yingce Xia, Shufang Xie, Anna Ostropolets, "
            "Budhaditya Deb, Yuan-Jyue Chen, Tristan Naumann, Noemie Elhadad"
        ),
        year=2023,
        arxiv="2305.07615",
        problem="which candidate summaries to calibrate a summariser on",
        area="alignment",
        fidelity="official",
        reference="the losses, selection strategies and metrics (griff4692/calibrating-summaries)",
        venue="ACL",
    ),
    Paper(
        slug="data-diet",
        title="Deep Learning on a Data Diet: Finding Important Examples Early in Training",
        authors="Mansheej Paul, Surya Ganguli, Gintare Karolina Dziugaite",
        year=2021,
        arxiv="2107.07075",
        problem="which training examples matter, which are redundant or mislabelled",
        area="coreset",
        fidelity="official",
        reference="the authors' JAX scores (mansheej/data_diet)",
        venue="NeurIPS",
    ),
    Paper(
        slug="sws",
        title="Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models",
        authors="Shi-Yu Xia, Wenxuan Zhu, Xu Yang, Xin Geng",
        year=2024,
        arxiv="2404.16897",
        problem="models of many depths again, with stages that know their place",
        area="learngene",
        fidelity="official",
        reference="the model, weight transfer and losses (AlphaXia/SWS)",
        venue="IJCAI",
    ),
    Paper(
        slug="vacancysbert",
        title=(
            "VacancySBERT: the approach for representation of titles and skills for semantic similarity "
            "search in the recruitment domain"
        ),
        authors="Maiia Y. Bocharova, Eugene V. Malakhov, Vitaliy I. Mezhuyev",
        year=2023,
        arxiv="2307.16638",
        problem="free-text job titles must be normalised, with or without the skills asked for",
        area="text",
        fidelity="reconstructed",
        reference=(
            "no code was published and only the abstract could be read: a float64 formula of the usual "
            "ranking loss, checked against sentence-transformers"
        ),
        venue="Applied Aspects of Information Technology",
    ),
    Paper(
        slug="naive-bayes-probe",
        title="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
        authors="Chenyu Zheng, Guoqiang Wu, Fan Bao, Yue Cao, Chongxuan Li, Jun Zhu",
        year=2023,
        arxiv="2302.02334",
        problem="few labels on top of a frozen pre-trained model",
        area="estimators",
        fidelity="official",
        reference="the class GaussianNB (ML-GSAI/Revisiting-Dis-vs-Gen-Classifiers)",
        venue="ICML",
    ),
    Paper(
        slug="adapt-then-unlearn",
        title=(
            "Adapt then Unlearn: Exploring Parameter Space Semantics for Unlearning in Generative "
            "Adversarial Networks"
        ),
        authors="Piyush Tiwary, Atri Guha, Subhodip Panda, Prathosh A.P.",
        year=2025,
        arxiv="2309.14054",
        problem="a GAN must stop producing an undesired feature; its training data is gone",
        area="unlearning",
        fidelity="official",
        reference="the elastic-weight and repulsion losses (atriguha/Adapt_Unlearn) on a small generator",
        venue="TMLR",
    ),
    Paper(
        slug="unmix-tns",
        title="Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal Correlation",
        authors="Devavrat Tomar, Guillaume Vray, Jean-Philippe Thiran, Behzad Bozorgtabar",
        year=2024,
        arxiv="2401.08328",
        problem="test streams are temporally correlated, so batch statistics are skewed",
        area="adaptation",
        fidelity="official",
        reference="the layers UnMixTNS1d and UnMixTNS2d (devavratTomar/unmixtns) over consecutive steps",
        venue="ICLR",
    ),
    Paper(
        slug="inductive-bias",
        title="Towards Exact Computation of Inductive Bias",
        authors="Akhilan Boopathy, William Yue, Jaedong Hwang, Abhiram Iyer, Ila Fiete",
        year=2024,
        arxiv="2406.15941",
        problem="how much inductive bias does a task need, and does this architecture bring it",
        area="generalization",
        fidelity="official",
        reference=(
            "the authors' bias and kernel functions (FieteLab/Exact-Inductive-Bias), with forty-digit "
            "tails where theirs falls back to an approximation"
        ),
        venue="IJCAI",
    ),
    Paper(
        slug="mixup-calibration",
        title="On the Limitations of Temperature Scaling for Distributions with Overlaps",
        authors="Muthu Chidambaram, Rong Ge",
        year=2024,
        arxiv="2306.00740",
        problem="temperature scaling fails where classes overlap",
        area="calibration",
        fidelity="official",
        reference="the mixup loss and temperature scaling (2014mchidamb/temp-scaling-limitations)",
        venue="ICLR",
    ),
    Paper(
        slug="fairseg",
        title=(
            "FairSeg: A Large-Scale Medical Image Segmentation Dataset for Fairness Learning Using "
            "Segment Anything Model with Fair Error-Bound Scaling"
        ),
        authors="Yu Tian, Min Shi, Yan Luo, Ava Kouhana, Tobias Elze, Mengyu Wang",
        year=2024,
        arxiv="2311.02189",
        problem="segmentation works less well for some groups of patients",
        area="fairness",
        fidelity="official",
        reference="the fair losses and equity-scaled metrics (Harvard-Ophthalmology-AI-Lab/FairSeg)",
        venue="ICLR",
    ),
    Paper(
        slug="noiser",
        title="NoiSER: Noise is All You Need for Low-Light Image Enhancement",
        authors="Zhao Zhang, Suiyi Zhao, Xiaojie Jin, Mingliang Xu, Yi Yang, Shuicheng Yan",
        year=2022,
        arxiv="2211.04700",
        problem="dark photographs and no data to train on",
        area="vision",
        fidelity="reconstructed",
        reference=(
            "an independent PyTorch version (dengbuqi/NoiSER) whose details could not be confirmed "
            "against the paper"
        ),
    ),
    Paper(
        slug="label-sharpness",
        title=(
            "The Effect of Intrinsic Dataset Properties on Generalization: Unraveling Learning "
            "Differences Between Natural and Medical Images"
        ),
        authors="Nicholas Konz, Maciej Mazurowski",
        year=2024,
        arxiv="2401.08865",
        problem="why does this data set generalise worse than that one",
        area="generalization",
        fidelity="derived",
        reference=(
            "label sharpness by brute force over all pairs, because the official function has a bug; "
            "intrinsic dimensions by the official estimators (ppope/dimensions)"
        ),
        venue="ICLR",
    ),
    Paper(
        slug="gradient-ptq",
        title="Gradient-Based Post-Training Quantization: Challenging the Status Quo",
        authors="Edouard Yvinec, Arnaud Dapogny, Kevin Bailly",
        year=2023,
        arxiv="2308.07662",
        problem="a trained net must run in few bits without retraining",
        area="quantization",
        fidelity="independent",
        reference=(
            "the code of the methods it studies (yhhhli/BRECQ, wimh966/QDrop) and a closed form of the "
            "power grid; the paper itself has no code"
        ),
    ),
    Paper(
        slug="itool",
        title="Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning",
        authors=(
            "Yirong Zeng, Xiao Ding, Yuxian Wang, Weiwen Liu, Wu Ning, Yutai Hou, Xu Huang, Duyu Tang, "
            "Dandan Tu, Bing Qin, Ting Liu"
        ),
        year=2025,
        arxiv="2501.09766",
        problem="fine-tuning on synthetic tool-use data stops paying off",
        area="alignment",
        fidelity="official",
        reference="the tree search and preference pairs of the paper's later version (zeng-yirong/iTool)",
        venue="EMNLP",
    ),
    Paper(
        slug="accuracy-disparity",
        title="Understanding the Impact of Adversarial Robustness on Accuracy Disparity",
        authors="Yuzheng Hu, Fan Wu, Hongyang Zhang, Han Zhao",
        year=2023,
        arxiv="2211.15762",
        problem="adversarial training hurts some classes more than others",
        area="fairness",
        fidelity="derived",
        reference=(
            "closed forms for linear classifiers on Gaussian mixtures, checked by numerical minimisation "
            "of the robust risk"
        ),
        venue="ICML",
    ),
    Paper(
        slug="udim",
        title="Unknown Domain Inconsistency Minimization for Domain Generalization",
        authors="Seungjae Shin, HeeSun Bae, Byeonghu Na, Yoon-Yeong Kim, Il-Chul Moon",
        year=2024,
        arxiv="2403.07329",
        problem="unseen domains, unlike any perturbation of the weights alone",
        area="generalization",
        fidelity="official",
        reference="the optimizer IADA_FINAL (aailabkaist/UDIM) and SAM of davda54/sam",
        venue="ICLR",
    ),
    Paper(
        slug="correctness-aware-calibration",
        title="Optimizing Calibration by Gaining Aware of Prediction Correctness",
        authors="Yuchi Liu, Lei Wang, Yuli Zou, James Zou, Liang Zheng",
        year=2024,
        arxiv="2404.13016",
        problem="cross-entropy calibrators raise the confidence of narrow mistakes",
        area="calibration",
        fidelity="official",
        reference=(
            "the adaptive temperature, its loss and its metrics (liuyvchi/Correctness-aware-calibration)"
        ),
    ),
)

_BY_SLUG = {paper.slug: paper for paper in CATALOGUE}
