"""Settings that every config starts from. What a number means is said beside it; plain values only."""

from ml_collections import ConfigDict, FieldReference


def get_default_config() -> ConfigDict:
    """Settings shared by all families; a config file sets what it needs to."""
    config = ConfigDict()
    config.seed = 0
    config.device = "auto"  # auto: a GPU if there is one
    config.plugins = ()  # modules or .py files to import, for their @register_... decorators

    config.source = _source()
    config.data = _data()
    config.sde = ConfigDict({"name": "ddpm"})  # the other keys are that SDE's own options
    config.model = _model()
    config.training = _training()
    config.optim = _optim()
    config.sampling = _sampling()
    config.eval = _eval()
    return config


def _source() -> ConfigDict:
    """Settings of --mode import: the project of the checkpoint, and what its file does not say itself."""
    return ConfigDict(
        {
            "name": "",  # ddpm, diffusers, edm, guided_diffusion, improved_diffusion or score_sde; or --source
            "checkpoint": "",  # its file, of diffusers a folder or a name on the hub; or --checkpoint
            # that project's settings: a published name, flags as in its README, or the path of a JSON file, from here
            # or from the checkpoint; what can be read off the checkpoint need not be said
            "config": "",
            "weights": "ema",  # score_sde alone: ema or raw
            "preconditioning": "",  # edm alone: edm, vp or ve
        }
    )


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "dataset": "digits",
            "root": "",  # "": $SDE_DATA, else downloads/
            # folder alone: resize and crop to this, one number for squares, or height and width (32, 48); 0: as it is,
            # and all images of one size
            "image_size": FieldReference(0, field_type=object),
            "channels": 0,  # folder alone: 1 or 3; 0: 1 if all images are grey, else 3
            "random_flip": False,  # horizontal, in training alone
        }
    )


def _model() -> ConfigDict:
    return ConfigDict(
        {
            # unet, adm or ncsnpp for images, mlp for vectors; or checkpoint: network, SDE, parameterization and time
            # input are those of what was imported into the work directory, and a config need not say them: where it
            # does, they must agree
            "backbone": "unet",
            "network": ConfigDict(),  # the backbone's options that have no key here, by the names that it gives them
            "parameterization": "eps",  # eps, x0, v, score, edm or levels
            # what the network is told of t: auto, index, index1000, reversed_index, t999, log_snr, log_sigma,
            # log_half_sigma or edm
            "noise_input": "auto",
            "data_std": 0.5,  # used by edm alone; vectors are standardized, to 1
            "channels": 128,
            "channel_mult": (1, 2, 2, 2),
            "num_res_blocks": 2,
            "attention_resolutions": (16,),  # the levels with attention, by their shorter side
            "num_heads": 1,
            "head_channels": 0,  # instead of num_heads
            "dropout": 0.0,
            "scale_shift_norm": False,
            "norm_groups": 32,
            "norm_eps": 1e-6,
            "embedding": "sin_first",  # sin_first (Ho et al.), cos_first (Improved DDPM) or fourier
            "symmetric_downsample": False,  # as Improved DDPM
            "input_frequencies": (),  # n of sin(2^n pi x), cos(2^n pi x) appended to the input; (7, 8) as VDM
            "learned_variance": False,
            "dequantizer": False,  # learn where on their bins grey levels go; with training.loss=dequantized
            "class_conditional": False,  # the network is told the label; of data with two classes or more
        }
    )


def _training() -> ConfigDict:
    return ConfigDict(
        {
            "num_steps": 100_000,
            "batch_size": 128,  # of all processes together
            # ddpm: L_simple on the table; dsm: continuous time; auto: one of these by the SDE. The bound itself: vlb on
            # the table, vlb_continuous, dequantized; hybrid: L_simple, and the bound for the learned variance
            "loss": "auto",
            "weighting": "auto",  # eps, x0, v, edm or, with dsm, likelihood; auto: eps, of parameterization edm edm
            "time_sampling": "uniform",  # low_discrepancy: spread over the batch; importance: where the loss is large
            "precision": "auto",  # fp32, or bf16 for the network alone; auto: bf16 where the machine is good at it
            "compile": "auto",  # on or off; auto: where there is a compiler, for runs that are worth its minute
            "accumulation_steps": 1,  # a batch in this many parts a process, for less memory
            "gradient_checkpointing": False,  # compute activations twice, for less memory
            "sharding": "none",  # fsdp: split weights and the optimizer's state over the processes of torchrun
            "explosion_factor": 1000.0,  # a loss above this many times its running mean is left out; 0: none is
            "max_bad_steps": 10,  # steps in a row that may be left out; one more ends the run
            "ema_decay": 0.9999,
            "grad_clip": 1.0,  # largest gradient norm; 0: none
            "checkpoint_every": 5_000,
            "keep_checkpoints": 3,
            "log_every": 50,
            "sample_every": 5_000,  # a small grid of samples for TensorBoard; 0: never
        }
    )


def _optim() -> ConfigDict:
    return ConfigDict(
        {
            "name": "adam",  # adam or adamw
            "learning_rate": 2e-4,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "warmup_steps": 5_000,  # the learning rate rises linearly over these
            "decay_steps": 0,  # and has fallen to 0 along half a cosine at this one, num_steps or later; 0: it stays
        }
    )


def _sampling() -> ConfigDict:
    return ConfigDict(
        {
            "sampler": "ancestral",
            "num_steps": 1000,
            "num_samples": 64,
            "batch_size": 64,
            "classes": (),  # of a conditional model: numbers or names, as in 3,7, drawn in turn; (): all
            "grid": "uniform",
            "options": "",  # the sampler's own options, as in "eta=0.5"
            "clip_x0": True,  # clip the predicted x0 to the range of images; vectors have none
            "threshold_x0": 0.0,  # instead: bring this quantile of |x0| into that range; 0.995 is usual, 0: none
            "precision": "auto",  # as in training
            "compile": "auto",
            "png_folder": False,  # write each sample as a PNG too, for tools that measure FID
            "record_trajectory": False,  # write how the first 16 samples come about: trajectory.npz and .gif
        }
    )


def _eval() -> ConfigDict:
    return ConfigDict(
        {
            # vlb, the bound; vlb_continuous, its limit; ode, the probability flow's exact likelihood
            "likelihoods": ("vlb", "ode"),
            "num_images": 0,  # 0: the whole split
            "batch_size": 128,
            "split": "test",
            "precision": "fp32",  # as in training; a likelihood by a bf16 network is that of another model
            "compile": "off",
            "clip_x0": True,  # measures the chain whose predicted x0 is clipped
            "vlb_variance": "auto",  # small, large or learned; auto: learned where the model has it, else small
            "vlb_num_steps": 0,  # 0: the SDE's table, or 1000
            "vlb_grid": "uniform",  # where those steps are: any time grid of the samplers
            "vlb_samples_per_image": 0,  # L_t evaluated per image, at random; 0: all of them (continuous: 10)
            "vlb_step_sampling": "importance",  # or uniform, stratified, low_discrepancy: how those are drawn
            # decoder, uniform or, of a model that learned it, variational; of vectors decoder, or none: the density of
            # the flow
            "ode_dequantization": "decoder",
            "ode_importance_samples": 1,  # a tighter bound with more; needs ode_divergence "exact"
            "ode_divergence": "rademacher",  # probes: rademacher or gaussian; or exact, for few dimensions
            "ode_num_probes": 1,
            "ode_solver": "adams",  # another adaptive one, or one of ode_num_steps steps on ode_grid: heun, rk4, ...
            "ode_rtol": 1e-5,
            "ode_atol": 1e-5,
            "ode_num_steps": 0,  # of the latter
            "ode_grid": "log_snr",
            "ode_max_nfe": 10_000,
            "ode_t_end": 0.0,  # where the flow begins; 0: the smallest time that networks know
        }
    )
