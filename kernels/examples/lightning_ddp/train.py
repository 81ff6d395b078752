"""CogVideoX's denoising loss in a LightningModule, DDP over two processes."""

import lightning
import torch
import torch.nn.functional as F
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel


class Denoiser(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            time_embed_dim=16,
            text_embed_dim=8,
            max_text_seq_length=3,
            sample_width=4,
            sample_height=4,
            sample_frames=5,
        )
        self.scheduler = CogVideoXDDIMScheduler()

    def training_step(self, batch, index):
        latents, text = batch
        draw = torch.Generator().manual_seed(1000 * index + self.global_rank)
        noise = torch.randn(latents.shape, generator=draw).to(latents)
        timestep = torch.randint(1000, (len(latents),), generator=draw).to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        velocity = self.transformer(noisy, text, timestep).sample
        denoised = self.scheduler.get_velocity(velocity, noisy, timestep)
        loss = F.mse_loss(denoised, latents)
        mean = self.all_gather(loss.detach()).mean().item()
        if self.global_rank == 0:
            print(f"step {index}: loss {mean!r}", flush=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


if __name__ == "__main__":
    lightning.seed_everything(0)
    model = Denoiser()
    clips = torch.utils.data.TensorDataset(torch.randn(10, 2, 4, 4, 4), torch.randn(10, 3, 8))
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=2,
        strategy="ddp_spawn",
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(clips, batch_size=1))
