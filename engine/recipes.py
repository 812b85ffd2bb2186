"""Option values under published names; `options.parse` puts them in. Plain data."""

# A recipe is a set of option values under a published name. Values given on the command line win.
# Sources: AdaptSegNet train_gta2cityscapes_multi.py and README; ADVENT domain_adaptation/config.py;
# DACS configs/configUDA.json and trainUDA.py; Seg-Uncertainty README.md, train_ms.py, train_ft.py.
# `camvid` and `streets` are this project's own.
_ADAPTSEGNET = {
    "source": ["gta5"],
    "target": "cityscapes",
    "input_size": (1280, 720),
    "input_size_target": (1024, 512),
    "model": "deeplabv2",
    "backbone": "resnet101",
    "aspp_dilations": (6, 12),
    "weights": "imagenet",  # of the Caffe style: give the file
    "align_corners": True,
    "batch_size": 1,
    "num_steps": 250_000,
    "num_steps_stop": 150_000,
    "save_pred_every": 5000,
    "learning_rate": 2.5e-4,
    "learning_rate_D": 1e-4,
    "method": ["adversarial"],
    "lambda_seg": 0.1,
}
_ADVENT = {
    **_ADAPTSEGNET,
    "multi_level": True,
    "aspp_dilations": (6, 12, 18, 24),
    "num_steps_stop": 120_000,
    "save_pred_every": 2000,
}
# Seg-Uncertainty, what both stages share. Not expressible here: SGD with Nesterov's momentum; its
# head (concatenated ASPP with group norm, squeeze-excitation and dropout 0.1, then 0.2); classes
# weighted batch by batch, the easiest 80% of pixels dropped, crops drawn until ten classes are in.
# The target is 1280x640, not 1024x512: our random scale is for both domains, and crops must fit.
_SEG_UNCERTAINTY = {
    **_ADAPTSEGNET,
    "input_size_target": (1280, 640),
    "random_scale": (0.8, 1.2),
    "random_mirror": True,
    "multi_level": True,
    "aspp_dilations": (6, 12, 18, 24),
    "class_balance": True,
    "warmup_steps": 5000,
    "num_steps": 100_000,
    "num_steps_stop": 25_000,  # its schedule is of 100 000, its results are of this step
    "lambda_seg": 0.5,
}
_CAMVID = {
    "source": ["camvid"],
    "source_set": ["day_train"],
    "target": "camvid",
    "set": "dusk_train",
    "val_set": "dusk_val",
    "input_size": (320, 240),
    "crop_size": (256, 192),
    "random_mirror": True,
    "model": "deeplabv3plus",
    "backbone": "efficientnet_lite0",
    "weights": "imagenet",
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "warmup_steps": 20,
    "class_balance": True,
    "batch_size": 4,
    "num_steps": 600,
    "save_pred_every": 100,
    "learning_rate_D": 1e-3,
    "discriminator_at": "output",
    "lambda_adv_target2": 0.001,
    "lambda_entropy": 0.05,
    "teacher_momentum": 0.99,
    "mix": "class",
}
RECIPES = {
    # The paper's weights. AdaptSegNet's README asks for 0.00005 and 0.0005 since torch 0.4.
    "adaptsegnet-multi": {
        **_ADAPTSEGNET,
        "multi_level": True,
        "lambda_adv_target1": 0.0002,
        "lambda_adv_target2": 0.001,
    },
    "adaptsegnet-single": {**_ADAPTSEGNET, "lambda_adv_target2": 0.001},
    "adaptsegnet-lsgan": {**_ADAPTSEGNET, "gan": "LS", "lambda_adv_target2": 0.01},
    "advent": {
        **_ADVENT,
        "method": ["advent"],
        "lambda_adv_target1": 0.0002,
        "lambda_adv_target2": 0.001,
    },
    "minent": {
        **_ADVENT,
        "method": ["entropy"],
        "lambda_entropy_aux": 0.0002,
        "lambda_entropy": 0.001,
    },
    "dacs": {
        **_ADAPTSEGNET,
        "method": ["mix"],
        "mix": "class",
        "crop_size": (512, 512),
        "batch_size": 2,
        "num_steps_stop": None,
        "teacher_momentum": 0.99,
        "mix_threshold": 0.968,
        "lambda_mix": 1.0,
        "mix_jitter": 0.25,
        "mix_hue": 0.25,
        "mix_blur": 0.5,
    },
    # Stage I. Its three discriminators a level see three scales, with a gradient penalty of 0.01.
    "mrnet": {
        **_SEG_UNCERTAINTY,
        "crop_size": (1024, 512),
        "batch_size": 2,
        "learning_rate": 2e-4,
        "method": ["adversarial", "memory"],
        "gan": "LS",
        "lambda_adv_target1": 0.0002,
        "lambda_adv_target2": 0.001,
        "lambda_memory": 0.1,
        "memory_from": 15_000,
    },
    # Stage II: give --restore-from and --pseudo-labels. Its batch norms are trained whole, there is
    # no source, and its "--autoaug False" turns AutoAugment on, which its authors did not mean.
    "rectified": {
        **_SEG_UNCERTAINTY,
        "crop_size": (512, 256),
        "batch_size": 9,
        "learning_rate": 1e-4,
        "method": ["rectify"],
        "lambda_rectify": 1.0,
    },
    # The project that the experiments' page goes back to; torchvision's ImageNet weights.
    "gta5-640x360": {
        **_ADAPTSEGNET,
        "input_size": (640, 360),
        "input_size_target": (640, 360),
        "multi_level": True,
        "style": "torchvision",
        "batch_size": 2,
        "num_steps_stop": None,
        "lambda_adv_target1": 0.0002,
        "lambda_adv_target2": 0.001,
    },
    "loveda": {
        "source": ["loveda"],
        "target": "loveda",
        "input_size": (512, 512),
        "model": "deeplabv2",
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 5e-4,
        "batch_size": 6,
        "num_steps": 6000,  # about 25 times the 1366 images of Rural
        "save_pred_every": 500,
    },
    "camvid": _CAMVID,
    "camvid-adapt": {**_CAMVID, "num_steps": 300, "learning_rate": 5.36e-4},
    "streets": {
        "source": ["streets"],
        "source_set": ["train"],
        "target": "streets",
        "set": "train",
        "val_set": "val",
        "input_size": (160, 96),
        "random_mirror": True,
        "model": "compact",
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 1e-2,
        "warmup_steps": 20,
        "batch_size": 8,
        "num_steps": 300,
        "adapt_from": 150,
        "save_pred_every": 150,
        "num_workers": 0,
        "method": ["adversarial"],
        "learning_rate_D": 1e-3,
        "precision": "fp32",
        "class_balance": True,
        "discriminator_width": 32,
        "lambda_adv_target2": 0.01,
        "baseline": True,
    },
}
