"""Settings that every config starts from. A key's comment says what it means, here and in docs/config.md."""

from ml_collections import ConfigDict, FieldReference


def get_default_config() -> ConfigDict:
    """Settings shared by all families; a config file sets what it needs to."""
    config = ConfigDict()
    config.seed = 0  # of the weights, training, samples and measurements
    config.device = "auto"  # cpu, cuda or cuda:1; auto: a GPU if there is one
    config.plugins = ()  # modules or .py files to import, for their @register_... decorators

    config.source = _source()
    config.data = _data()
    config.sde = ConfigDict({"name": "ddpm"})
    config.model = _model()
    config.training = _training()
    config.optim = _optim()
    config.sampling = _sampling()
    config.eval = _eval()
    config.restore = _restore()
    config.segment = _segment()
    config.cascade = _cascade()
    config.control = _control()
    config.distillation = _distillation()
    config.interpolate = _interpolate()
    config.edit = _edit()
    config.progressive = _progressive()
    return config


def _source() -> ConfigDict:
    """Settings of --mode import: the project of the checkpoint, and what its file does not say itself."""
    return ConfigDict(
        {
            # autoencoder_kl, autoencoder_vq, consistency_models, ddpm, diffusers, diffusers_dit, diffusers_prior, dit,
            # edm, guided_diffusion, improved_diffusion, latent_diffusion, score_sde or sit; or --source
            "name": "",
            # its file, of diffusers, and of its autoencoders, a folder or a name on the hub; or --checkpoint
            "checkpoint": "",
            # that project's settings: a published name, flags as in its README, or the path of a JSON file, relative to
            # the current folder or to the checkpoint; what the checkpoint shows may be left out
            "config": "",
            "weights": "ema",  # of score_sde only: ema or raw
            "preconditioning": "",  # of edm only: edm, vp or ve
        }
    )


def _data() -> ConfigDict:
    """The data set. docs/data.md has the layouts of folders and arrays, docs/vectors.md that of vectors."""
    return ConfigDict(
        {
            # cifar10, clips, digits, folder, lesions, lesion_masks, mnist, moons, moving_digits, npz, scenes, or one
            # that a plugin registers
            "dataset": "digits",
            "root": "",  # the folder of the data; "": $SDE_DATA, else downloads/
            "options": "",  # the data set's own options, as in "base=mnist" of lesions
            # of folder only: resize and crop to this, one number for squares, or height and width (32, 48); 0: keep the
            # images as they are, all of one size
            "image_size": FieldReference(0, field_type=object),
            "channels": 0,  # of folder only: 1 or 3; 0: 1 if all images are grey, else 3
            "random_flip": False,  # flip images left to right at random, in training only
            # the work directory of an autoencoder, of whose latents the model is, standardized; "": of the pixels
            "first_stage": "",
            "couples": "",  # folder of the couples of noise and sample by --mode couple, for training.loss=reflow
            # folder of a frozen text encoder for condition=text (docs/text.md); "": the network learns words itself
            "text_encoder": "",
            "text_options": "",  # its options, such as max_length=64
            # of clips: first frames that are given, and the model is one of those after them; with condition=paired
            "given_frames": 0,
            "downscale": (),  # means of boxes in place of the images, by these factors one after the other: (2,)
            # conditions that are told to the network: edges, gray, ink, lowres and masked are made of an image, values
            # come with the images or vectors of an npz file, paired is an image that lies beside each, of clips the
            # given frames; or one that a plugin registers; several: lowres,ink
            "condition": (),
            "condition_options": "",  # their options, as in "factor=2"
        }
    )


def _model() -> ConfigDict:
    """The network and the meaning of its output. The docstrings in models/backbones say more of each option."""
    return ConfigDict(
        {
            # unet, adm, dit or ncsnpp for images, space_time for clips, mlp for vectors, prior_transformer for those
            # that are told captions; classifier: no score model, but one of the classes of noisy images, whose gradient
            # guides; autoencoder: one whose latents data.first_stage of other configs stands for; or checkpoint:
            # network, SDE, parameterization and time input of the model that was imported into the work directory; a
            # config that names them must agree; control: those of control.base, beside which a ControlNet is trained;
            # or teacher: those of distillation.teacher
            "backbone": "unet",
            # posterior_mean: x0 and eps as score models do; consistency: the end of the probability flow, of the losses
            # consistency_training, consistency_tuning, consistency_distillation and scm; flow: the velocity of a flow,
            # of the loss reflow; steps: steps of DDIM that stand for many, of progressive_distillation; generator: data
            # from pure noise, of distribution_matching
            "answers": "posterior_mean",
            "network": ConfigDict(),  # options of the backbone that have no key here, by their names in its class
            # options of models.Autoencoder, to train one together with the diffusion of its latents
            "first_stage": ConfigDict(),
            # what the output is: eps, x0, v, velocity, velocity_to_data, score, edm or levels
            "parameterization": "eps",
            # what the network is told of t: auto, index, index1000, reversed_index, t, t999, t1000, reversed_t,
            # reversed_t999, log_snr, log_sigma, log_half_sigma, edm or edm1000
            "time_input": "auto",
            "data_std": 0.5,  # standard deviation of the data, used by edm only; 1 for vectors, which are standardized
            "channels": 128,  # width of the first level
            "channel_mult": (1, 2, 2, 2),  # width of each level, as a multiple of channels; one entry a level
            "num_res_blocks": 2,  # residual blocks a level
            "attention_resolutions": (16,),  # resolutions of the levels with attention, by their shorter side
            "num_heads": 1,  # of attention
            "head_channels": 0,  # channels of an attention head, instead of num_heads; 0: by num_heads
            "dropout": 0.0,  # probability, in the residual blocks
            "scale_shift_norm": False,  # the time embedding scales and shifts the norm, as in Improved DDPM
            "norm_groups": 32,  # groups of the group norms
            "norm_eps": 1e-6,  # added to the variance in the norms
            "embedding": "sin_first",  # of the time: sin_first (Ho et al.), cos_first (Improved DDPM) or fourier
            "symmetric_downsample": False,  # pad all sides before downsampling, as in Improved DDPM
            "input_frequencies": (),  # n of sin(2^n pi x), cos(2^n pi x) appended to the input; (7, 8) as VDM
            "learned_variance": False,  # predict the reverse variance too; with training.loss=hybrid or vlb
            "dequantizer": False,  # learn the noise that fills the bins of grey levels; with training.loss=dequantized
            # the network is given the label, or is a classifier, which finds it; needs data with two classes or more
            "class_conditional": False,
            # share of the samples whose condition is left out in training, so that the network can answer without, as
            # classifier-free guidance asks; 0.1 is usual
            "condition_dropout": 0.0,
            # the same of parts (class, image, values, text), by draws of their own, as in "text=0.5, values=0.1"
            "part_dropout": "",
            # noise on condition images in training, that of x_t at a t from 0 to this, of which the network is told;
            # one sample in four has that of t = 0
            "condition_noise_t": 0.0,
        }
    )


def _training() -> ConfigDict:
    """The training loop. docs/training.md says which of these may change between two commands."""
    return ConfigDict(
        {
            "num_steps": 100_000,  # steps of the whole run
            "batch_size": 128,  # samples a step, of all processes together
            # ddpm: L_simple on a table; dsm: denoising score matching in continuous time; auto: one of these, by the
            # SDE; hybrid: L_simple, and the bound for the learned variance; vlb on a table, vlb_continuous and
            # dequantized: the bound itself; cross_entropy: that of a classifier; consistency_training,
            # consistency_tuning, consistency_distillation and scm: those of consistency models; reflow: on
            # data.couples; progressive_distillation and distribution_matching: those of few steps, and of one
            "loss": "auto",
            # the error that has weight 1: eps, x0, v, velocity, truncated_snr, edm or, with dsm, likelihood; auto: edm
            # or velocity for these parameterizations, truncated_snr with progressive_distillation, else eps
            "weighting": "auto",
            # low_discrepancy: spread over the batch; importance: where the loss is large; logit_normal: more of the
            # middle of [0, 1], which is another loss
            "step_sampling": "uniform",
            "precision": "auto",  # fp32 or bf16; auto: bf16 for large networks where the hardware is fast at it
            "compile": "auto",  # torch.compile: on or off; auto: on for long runs of large networks
            "accumulation_steps": 1,  # micro-batches a process, one after the other, for less memory
            "gradient_checkpointing": False,  # compute activations again in the backward pass, for less memory
            "sharding": "none",  # fsdp: split weights and the optimizer's state over the processes of torchrun
            "explosion_factor": 1000.0,  # skip a step whose loss is this many times its running mean; 0: never
            "max_bad_steps": 10,  # skipped steps in a row; one more ends the run
            "ema_decay": 0.9999,  # decay of the moving average of the weights, reached after a warm-up
            # widths of more averages, as shares of the steps so far, as in 0.05,0.1, of which --mode ema makes others
            # after the training: docs/ema.md
            "ema_profiles": (),
            "ema_snapshot_every": 5_000,  # steps between two snapshots of these, which are all kept
            "grad_clip": 1.0,  # largest gradient norm; 0: no limit
            "checkpoint_every": 5_000,  # steps
            "keep_checkpoints": 3,  # the newest ones
            "log_every": 50,  # steps
            "sample_every": 5_000,  # steps between small grids of samples for TensorBoard; 0: never
        }
    )


def _optim() -> ConfigDict:
    """The optimizer and its learning rate."""
    return ConfigDict(
        {
            "name": "adam",  # adam, adamw, or muon, for transformers: docs/training.md
            "learning_rate": 2e-4,  # after the warm-up
            "beta1": 0.9,  # decay of the gradient's average
            "beta2": 0.999,  # decay of the squared gradient's average
            "eps": 1e-8,  # added to the denominator
            "weight_decay": 0.0,  # decoupled from the gradient with adamw and muon
            "warmup_steps": 5_000,  # the learning rate rises linearly over these
            "decay_steps": 0,  # and falls to 0 along half a cosine until this step, num_steps or later; 0: it stays
        }
    )


def _sampling() -> ConfigDict:
    """Settings of --mode sample, and of the samples drawn during training."""
    return ConfigDict(
        {
            "sampler": "ancestral",  # see docs/samplers.md
            "num_steps": 1000,  # of the sampler; samplers with their own steps ignore it
            "num_samples": 64,  # how many are drawn
            "batch_size": 64,  # drawn at once
            # of a class-conditional or guided model: numbers or names, as in 3,7, drawn in turn; (): all
            "classes": (),
            "condition_split": "test",  # sample k is told what is observed of image k of this split, or of --input
            "condition_noise_t": 0.0,  # noise on that image, that of x_t at this t; model.condition_noise_t at most
            "grid": "uniform",  # where the steps are: uniform, quadratic, trailing, leading, karras or log_snr
            "options": "",  # the sampler's own options, as in "eta=0.5"
            "classifier": "",  # the work directory of a classifier whose gradient guides towards classes; "": none
            "classifier_scale": 1.0,  # what its gradient is multiplied by; 1: Bayes' rule
            "clip_x0": True,  # clip the predicted x0 to the range of images; without effect on vectors
            "threshold_x0": 0.0,  # instead, scale x0 so that this quantile of |x0| is in range; 0.995 is usual, 0: off
            # w of unconditional + w (conditional - unconditional), in --mode sample alone; 1: no guidance
            "guidance_weight": 1.0,
            "guidance_schedule": "constant",  # or cfg++: weights along the grid, of which guidance_weight is the lambda
            "guidance_interval": (),  # lo,hi: guide only where lo < sigma / alpha <= hi; (): everywhere
            "negative_prompt": "",  # a text that guidance moves away from, in place of none
            "guidance_rescale": 0.0,  # bring the spread of guided x0 back to the unguided one's by this share; 0: off
            # guide away from the model of this work directory, or of one of its checkpoints as in runs/x@1000, instead
            # of away from the model without its condition
            "guidance_reference": "",
            "guidance_reference_weights": "ema",  # of that model: ema or raw
            "precision": "auto",  # as in training
            "compile": "auto",  # as in training
            "png_folder": False,  # write each sample as a PNG too, for tools that measure FID
            "record_trajectory": False,  # write how the first 16 samples come about: trajectory.npz and .gif
        }
    )


def _eval() -> ConfigDict:
    """Settings of --mode eval and --mode classify. docs/likelihood.md says what the numbers mean."""
    return ConfigDict(
        {
            # vlb: the variational bound; vlb_continuous: its limit of many steps; ode: the likelihood of the
            # probability-flow ODE
            "likelihoods": ("vlb", "ode"),
            "num_images": 0,  # the first ones of the split; 0: all
            "batch_size": 128,  # measured at once
            "split": "test",  # test or train
            "precision": "fp32",  # as in training; with bf16 the network is another model
            "compile": "off",  # as in training
            "clip_x0": True,  # of vlb: measure the chain whose predicted x0 is clipped
            "vlb_variance": "auto",  # small, large or learned; auto: learned where the model has it, else small
            "vlb_num_steps": 0,  # T; 0: the length of the SDE's table, or 1000
            "vlb_grid": "uniform",  # where those steps are: a grid of the samplers
            "vlb_steps_per_image": 0,  # terms L_t evaluated per image, drawn at random; 0: all (vlb_continuous: 10)
            "vlb_step_sampling": "importance",  # how they are drawn: importance, uniform, stratified or low_discrepancy
            # decoder, uniform or, of a model that learned it, variational; of vectors decoder or none, the density of
            # the ODE itself
            "ode_dequantization": "decoder",
            "ode_importance_samples": 1,  # a tighter bound with more; needs ode_divergence "exact"
            "ode_divergence": "rademacher",  # estimated by rademacher or gaussian probes; or exact, for few dimensions
            "ode_num_probes": 1,  # of each image
            "ode_solver": "adams",  # adaptive: adams, dopri5, ...; of ode_num_steps steps: euler, heun, midpoint, rk4
            "ode_rtol": 1e-5,  # relative tolerance of adaptive solvers
            "ode_atol": 1e-5,  # absolute tolerance of adaptive solvers
            "ode_num_steps": 0,  # of solvers that are not adaptive
            "ode_grid": "log_snr",  # where those steps are
            "ode_max_nfe": 10_000,  # network calls, above which the measurement ends with an error
            "ode_t_end": 0.0,  # the time next to the data where the ODE begins; 0: the smallest that networks know
            "classify_by": "vlb",  # of --mode classify: vlb, vlb_continuous or ode
            "classify_rounds": 1,  # estimates of each class, each with draws of its own, that are averaged
            # standard errors above the best class at which a class is dropped after a round; 3 is usual, 0: never
            "classify_z": 0.0,
            # t above which classes are told; next to the data x_t shows the class, and what differs is error; 0: always
            "classify_told_above_t": 0.0,
        }
    )


def _restore() -> ConfigDict:
    """Settings of --mode restore: docs/howto/restore.md. Sampler, batch size and guidance are those of sampling."""
    return ConfigDict(
        {
            "operator": "inpaint",  # what is measured of an image: blur, downsample, gray, identity or inpaint
            # its options, as in "factor=4" of downsample, "std=1.5" of blur, or "hidden=center" of inpaint, which hides
            # the right half unless this or --mask says otherwise
            "operator_options": "",
            "noise_std": 0.05,  # standard deviation of the noise on what is measured, where images are in [-1, 1]
            # ddnm, dps, dps_published, mmps, pigdm, repaint, replacement, tmpd or twisted
            "method": "mmps",
            "method_options": "",  # its options, as in "iterations=8" of mmps or "num_particles=32" of twisted
            "num_images": 8,  # the first ones of the split; of --input all are restored
            "samples_per_image": 8,  # how many samples of its posterior each image has
            "split": "test",  # test or train
        }
    )


def _segment() -> ConfigDict:
    """Settings of --mode segment: docs/howto/segment.md. Sampler, batch size and guidance are those of sampling."""
    return ConfigDict(
        {
            "num_images": 64,  # the first ones of the split; of --input all are segmented
            "samples_per_image": 8,  # how many masks each image has, 2 or more
            "split": "test",  # test or train
        }
    )


def _cascade() -> ConfigDict:
    """The stages of a cascade, in whose config file all other sections are left as they are: docs/howto/cascade.md."""
    return ConfigDict(
        {
            # configs of the stages, from the smallest images on: vp/digits_2,vp/digits_4_sr,vp/digits_sr; (): none
            "stages": (),
            # noise on what each stage but the first is told of the images before it, that of x_t at this t; at most the
            # model.condition_noise_t of that stage
            "noise_t": (),
            "guidance_weight": (),  # of each stage, in place of sampling.guidance_weight: 2,1; (): that one for all
            "truncated": False,  # stop an earlier stage at that noise, instead of adding it to the finished image
        }
    )


def _control() -> ConfigDict:
    """Settings of a ControlNet, which is trained beside a frozen model: docs/control.md."""
    return ConfigDict(
        {
            # the work directory of that model, or one of its checkpoints as in runs/x@1000, of which the way down is
            # copied and trained; its hint is data.condition; "": none
            "base": "",
            "hint_widths": (16, 32, 96),  # widths of the layers between the hint and the first convolution
            "scale": 1.0,  # what its additions are multiplied by in sampling and measuring; 0: the frozen model
            # factor of each addition for every one that comes after it, which weakens those of high resolution; 0.825
            # is ControlNet's guess mode, 1: none
            "decay": 1.0,
            # work directories of other ControlNets of the same model, whose additions are added in sampling and
            # measuring, each with its own scale as in runs/control/mnist_lowres:0.5
            "also": (),
            "guided": "both",  # which side of guidance the hint controls: both, or conditional
        }
    )


def _distillation() -> ConfigDict:
    """Settings of the losses that make a model of few steps, most of them out of a teacher: docs/consistency.md."""
    return ConfigDict(
        {
            # the work directory of the teacher, or one of its checkpoints as in runs/x@1000, which stays as it is and
            # with whose averaged weights training begins; "": none
            "teacher": "",
            "solver": "heun",  # of consistency_distillation, along the teacher's ODE: euler or heun
            # of consistency models: noise levels to begin with, and the most; they double every so many steps
            "noise_levels": (10, 1280),
            # steps after which that number doubles, consistency_tuning's gap halves, and scm's tangent is whole
            "double_every": 50_000,
            # of progressive_distillation: steps of DDIM of each student, halving, as in 8,4,2,1; the first learns from
            # the teacher with twice as many
            "stages": (),
            "stage_steps": 1_000,  # training steps of each
            # of progressive_distillation: clip what the teacher answers to the range of images, if there is one
            "clip_x0": True,
            # of distribution_matching: steps that train the score of the samples, for each that trains the generator
            "ratio": 5,
            "regression": 0.0,  # weight of the squared distance from the end of the teacher's ODE; 0: none
            "regression_steps": 20,  # steps of DDIM to that end
            "gan": 0.0,  # weight of a discriminator on the middle of that score's network; 0: none
        }
    )


def _interpolate() -> ConfigDict:
    """Settings of --mode interpolate, which samples by those of sampling: docs/howto/interpolate.md."""
    return ConfigDict(
        {
            "images": (0, 1),  # numbers of the images of a split, or of --input, two for each pair: 0,1,4,7
            "split": "test",  # train or test, unless --input gives the images
            "latents": "flow",  # flow: by the probability-flow ODE; q: draws of q(x_t | x0), with one noise for a pair
            "way": "auto",  # circle, lerp or slerp; auto: slerp of flow latents, lerp of those of q
            "weights": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),  # stops between the ends, which are 0 and 1
            "times": (),  # t of the latents, 0.25,0.5: a block of rows each; (): where the sampler begins
        }
    )


def _edit() -> ConfigDict:
    """Settings of --mode edit, which samples by those of sampling: docs/howto/edit.md."""
    return ConfigDict(
        {
            "method": "sdedit",  # counterfactual, finetune, invert or sdedit, or one that a plugin registers
            "method_options": "",  # its options, as in "own_class=False" of invert or "steps=6" of finetune
            "t": 0.0,  # the time that images are taken to; 0: by noise_ratio
            # its noise level sigma / alpha, instead; 0: that of the method, 1 of sdedit and counterfactual, and where
            # the sampler begins of the others
            "noise_ratio": 0.0,
            "num_images": 16,  # the first ones of the split; of --input all are edited
            "split": "test",  # train or test, unless --input gives the images
        }
    )


def _progressive() -> ConfigDict:
    """Settings of --mode progressive, which draws the samples of --mode sample: docs/howto/progressive.md."""
    return ConfigDict(
        {
            # t at which samples are predicted, 0.9,0.5,0.1, each the nearest of the sampler's steps; (): num_times
            "times": (),
            "num_times": 10,  # how many are spread evenly over the sampler's steps, at least 2
            "num_images": 64,  # the first ones of the split, which noise is added to
            "split": "test",  # test or train; the Frechet distance is to all of it
            "share_at": (0.25, 0.5, 0.75),  # t of states that samples share; (): none
            "shared_images": 8,  # the first ones of the split, each with a state at every such t
            "shared_samples": 4,  # of each state, at least 2
        }
    )
