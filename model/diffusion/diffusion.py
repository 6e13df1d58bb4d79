"""The pre-trained diffusion policy: a supervised loss, optionally with dispersed features, and sampling.

``L = mean |network(x_t, t, obs) - eps|^2 + weight * L_dispersive(hidden features)``, ``t`` uniform, in one forward
pass. DDPM (arXiv:2006.11239), Diffusion Policy (arXiv:2303.04137), D2PPO.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.common.dispersive_loss import DispersiveLoss, feature_diagnostics, record_outputs
from model.common.vision import encode_obs
from model.diffusion.process import DiffusionProcess, tabulate_time
from model.types import Batch, Losses, Obs, Sample, ShapeError


class DiffusionModel(DiffusionProcess):
    """A denoising policy; its ``state_dict`` is exactly ``network.*``.

    Args:
        network: ``(x, t, obs) -> prediction``; with a dispersive loss it also declares ``hidden_layers``.
        use_dispersive_loss: regularise the hidden features.
        dispersive_loss_weight: factor of that part in the total.
        dispersive_loss_temperature, dispersive_loss_type, dispersive_loss_layer, dispersive_loss_variant,
        dispersive_loss_self_pairs, dispersive_loss_group_size: see ``model.common.dispersive_loss``.

    The others are explained in ``DiffusionProcess``.

    Raises:
        ValueError: naming the key that does not fit; with a dispersive loss also a network of fewer than three hidden
            layers.
    """

    def __init__(
        self,
        network: nn.Module,
        horizon_steps: int,
        obs_dim: int,
        action_dim: int,
        denoising_steps: int = 100,
        predict_epsilon: bool = True,
        denoised_clip_value: float | None = 1.0,
        randn_clip_value: float | None = 10.0,
        final_action_clip_value: float | None = None,
        eps_clip_value: float | None = None,
        use_ddim: bool = False,
        ddim_steps: int | None = None,
        use_dispersive_loss: bool = False,
        dispersive_loss_weight: float = 0.5,
        dispersive_loss_temperature: float = 0.5,
        dispersive_loss_type: str = "infonce_l2",
        dispersive_loss_layer: str = "early",
        dispersive_loss_variant: str = "corrected",
        dispersive_loss_self_pairs: bool = True,
        dispersive_loss_group_size: int | None = 32,
    ) -> None:
        super().__init__(
            horizon_steps,
            obs_dim,
            action_dim,
            denoising_steps,
            predict_epsilon,
            denoised_clip_value,
            randn_clip_value,
            final_action_clip_value,
            eps_clip_value,
            use_ddim,
            ddim_steps,
        )
        tabulate_time(network, denoising_steps)
        self.network = network
        self.dispersive_loss_weight = dispersive_loss_weight
        self.dispersive: DispersiveLoss | None = None
        if use_dispersive_loss:
            self.dispersive = DispersiveLoss(
                kind=dispersive_loss_type,
                temperature=dispersive_loss_temperature,
                layer=dispersive_loss_layer,
                variant=dispersive_loss_variant,
                self_pairs=dispersive_loss_self_pairs,
                group_size=dispersive_loss_group_size,
            )
            self.dispersive.modules(network)  # too few hidden layers: say so now, not in the first batch

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The training loss and its parts: ``"diffusion loss"`` and, if used, ``"dispersive loss"`` (unweighted).

        Args:
            batch: actions ``(B, Ta, Da)`` in [-1, 1] and the observations they answer to.
            generator: draws the diffusion steps, the noise and, in training mode, the shifts of images (if the
                network's ``augment`` asks for them).

        Raises:
            ShapeError: the actions are not ``(B, Ta, Da)``.
            ValueError: a dispersive loss over a batch of one sample.
        """
        prediction, target, features = self._predict(batch, generator)
        diffusion = F.mse_loss(prediction, target)
        if self.dispersive is None:
            return Losses(diffusion, {"diffusion loss": diffusion.detach()})
        dispersive = self.dispersive(features)
        parts = {"diffusion loss": diffusion.detach(), "dispersive loss": dispersive.detach()}
        return Losses(diffusion + self.dispersive_loss_weight * dispersive, parts)

    def diagnostics(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Whether the dispersive loss acts, as 0-d tensors.

        ``feature_diagnostics`` of the first recorded layer, the norms of both losses' gradients in the network's
        parameters, ``gradient_norm_diffusion`` and ``gradient_norm_dispersive`` (unweighted), and
        ``gradient_norm_ratio``, weighted dispersive to diffusion.

        Parameters' ``.grad`` are not touched. Empty without a dispersive loss. Costs a forward and two backward passes.
        """
        if self.dispersive is None:
            return {}
        with torch.enable_grad():
            prediction, target, features = self._predict(batch, generator)
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            diffusion = _gradient_norm(F.mse_loss(prediction, target), parameters)
            dispersive = _gradient_norm(self.dispersive(features), parameters)
        report = feature_diagnostics(features[0], self.dispersive)
        report["gradient_norm_diffusion"] = diffusion
        report["gradient_norm_dispersive"] = dispersive
        report["gradient_norm_ratio"] = self.dispersive_loss_weight * dispersive / diffusion
        return report

    def _predict(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Prediction and target ``(B, Ta, Da)`` of one noised batch, and its recorded features: one forward pass."""
        x0 = batch.actions
        if tuple(x0.shape[1:]) != (self.horizon_steps, self.action_dim):
            expected = ("B", self.horizon_steps, self.action_dim)
            raise ShapeError(f"actions: expected (B, horizon_steps, action_dim) = {expected}, found {tuple(x0.shape)}")
        device = x0.device if generator is None else generator.device
        t = torch.randint(self.denoising_steps, (x0.shape[0],), generator=generator, device=device).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype).to(x0.device)
        x = self.schedule.q_sample(x0, t, noise)
        cond = batch.conditions
        if self.training and getattr(self.network, "augment", False):
            cond = self.network.augmented(cond, generator)
        with record_outputs(self.dispersive.modules(self.network) if self.dispersive is not None else []) as features:
            prediction = self.network(x, t, cond)
        return prediction, noise if self.predict_epsilon else x0, features

    @torch.no_grad()
    def sample(
        self,
        obs: Obs,
        deterministic: bool = True,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """Denoise one action chunk per row; no chain.

        Args:
            obs: ``{"state": (B, To, Do)[, "rgb": (B, To, C, H, W)]}``; images are encoded once.
            deterministic: DDPM deviation at least 1e-3 before the last step and 0 there; else the posterior's own. DDIM
                adds no noise in either case (``eta = 0``).
            noise: ``(B, *noise_shape)`` standard normal numbers, the start first; None draws them from ``generator``.
        """
        x, step_noise = self.prepare_noise(obs, noise, generator)
        obs = encode_obs(self.network, obs)
        for i in range(self.n_steps):
            mean, std = self.step_mean_std(self.network, x, i, obs)
            if deterministic:
                std = self.eval_std(std, i)
            x = self.finish(mean + std * step_noise[:, i], i)
        return Sample(x)


def _gradient_norm(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The Euclidean norm of the loss's gradient, all parameters together; the graph is kept."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()
