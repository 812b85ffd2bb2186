"""Recipes: words under published names, put before the user's own. Plain data.

What the user types wins: `command_line.parse` leaves out of a recipe what was given. A recipe is
printed when it is used, and what is printed can be typed.
"""

# Sources: AdaptSegNet train_gta2cityscapes_multi.py and README; ADVENT domain_adaptation/config.py;
# DACS configs/configUDA.json and trainUDA.py; Seg-Uncertainty README.md, train_ms.py, train_ft.py.
# `camvid` and `streets` are this project's own.
_GTA5 = "--source gta5 --target cityscapes"
# The weights are of the Caffe style: DeepLab_resnet_pretrained_init-f81d91e8.pth, see
# models/pretrained.py; `--model deeplabv2 style=torchvision` beside the recipe takes torchvision's.
_ADAPTSEGNET = f"""{_GTA5} --input-size 1280,720 --input-size-target 1024,512 --weights imagenet
    --align-corners --batch-size 1 --num-steps 250000 --save-pred-every 5000
    --learning-rate 2.5e-4 --learning-rate-D 1e-4 --method adversarial --lambda-seg 0.1"""
_DEEPLAB = "--model deeplabv2 encoder=resnet101 aspp_dilations=6,12"
_DEEPLAB_MULTI = f"{_DEEPLAB} multi_level=yes"
_DEEPLAB_FOUR = (
    "--model deeplabv2 encoder=resnet101 aspp_dilations=6,12,18,24 multi_level=yes"  # branches
)
_PAPER_WEIGHTS = "--lambda-adv-target1 0.0002 --lambda-adv-target2 0.001"
_ADVENT = f"{_ADAPTSEGNET} {_DEEPLAB_FOUR} --num-steps-stop 120000 --save-pred-every 2000"
# Seg-Uncertainty, what both stages share. Not expressible here: SGD with Nesterov's momentum; its
# head (concatenated ASPP with group norm, squeeze-excitation and dropout 0.1, then 0.2); classes
# weighted batch by batch, the easiest 80% of pixels dropped, crops drawn until ten classes are in.
# The target is 1280x640, not 1024x512: our random scale is for both domains, and crops must fit.
# Its schedule is of 100 000 steps, its results are of step 25 000.
_SEG_UNCERTAINTY = f"""{_ADAPTSEGNET} {_DEEPLAB_FOUR} --input-size-target 1280,640 --class-balance
    --warmup-steps 5000 --num-steps 100000 --num-steps-stop 25000 --lambda-seg 0.5"""
_CAMVID = """--source camvid --source-set day_train --target camvid --set dusk_train
    --val-set dusk_val --input-size 320,240 --augment hflip crop=256,192
    --model deeplabv3plus encoder=efficientnet_lite0 --weights imagenet --optimizer adamw
    --learning-rate 1e-3 --weight-decay 1e-2 --warmup-steps 20 --class-balance --batch-size 4
    --num-steps 600 --save-pred-every 100 --learning-rate-D 1e-3 --discriminator-at output
    --lambda-adv-target2 0.001 --lambda-entropy 0.05 --teacher-momentum 0.99 --mix class"""

RECIPES = {
    # The paper's weights. AdaptSegNet's README asks for 0.00005 and 0.0005 since torch 0.4.
    "adaptsegnet-multi": f"{_ADAPTSEGNET} {_DEEPLAB_MULTI} --num-steps-stop 150000"
    f" {_PAPER_WEIGHTS}",
    "adaptsegnet-single": f"{_ADAPTSEGNET} {_DEEPLAB} --num-steps-stop 150000"
    " --lambda-adv-target2 0.001",
    "adaptsegnet-lsgan": f"{_ADAPTSEGNET} {_DEEPLAB} --num-steps-stop 150000 --gan LS"
    " --lambda-adv-target2 0.01",
    "advent": f"{_ADVENT} --method advent {_PAPER_WEIGHTS}",
    "minent": f"{_ADVENT} --method entropy --lambda-entropy-aux 0.0002 --lambda-entropy 0.001",
    "dacs": f"{_ADAPTSEGNET} {_DEEPLAB} --method mix --mix class --augment crop=512,512"
    " --batch-size 2 --teacher-momentum 0.99 --mix-threshold 0.968 --lambda-mix 1.0"
    " --mix-jitter 0.25 --mix-hue 0.25 --mix-blur 0.5",
    # Stage I. Its three discriminators a level see three scales, with a gradient penalty of 0.01.
    "mrnet": f"{_SEG_UNCERTAINTY} --augment hflip scale=0.8,1.2 crop=1024,512 --batch-size 2"
    f" --learning-rate 2e-4 --method adversarial memory --gan LS {_PAPER_WEIGHTS}"
    " --lambda-memory 0.1 --memory-from 15000",
    # Stage II: give --restore-from and --pseudo-labels. Its batch norms are trained whole, there is
    # no source, and its "--autoaug False" turns AutoAugment on, which its authors did not mean.
    "rectified": f"{_SEG_UNCERTAINTY} --augment hflip scale=0.8,1.2 crop=512,256 --batch-size 9"
    " --learning-rate 1e-4 --method rectify --lambda-rectify 1.0",
    # The project that the experiments' page goes back to; torchvision's ImageNet weights.
    "gta5-640x360": f"{_ADAPTSEGNET} {_DEEPLAB_MULTI} style=torchvision --input-size 640,360"
    f" --input-size-target 640,360 --batch-size 2 {_PAPER_WEIGHTS}",
    # 6000 steps are about 25 times the 1366 images of Rural
    "loveda": "--source loveda --target loveda --input-size 512,512 --model deeplabv2"
    " --optimizer sgd --learning-rate 0.01 --weight-decay 5e-4 --batch-size 6 --num-steps 6000"
    " --save-pred-every 500",
    "camvid": _CAMVID,
    "camvid-adapt": f"{_CAMVID} --num-steps 300 --learning-rate 5.36e-4",
    # people's own images, of any shapes
    "folder": """--source folder --target folder --input-size 768 --augment hflip scale=0.75,1.5
        crop=512,512 source:jitter=0.3 --model deeplabv3plus encoder=efficientnet_lite0
        --weights auto --optimizer adamw --learning-rate 1e-3 --weight-decay 1e-2 --warmup-steps 20
        --batch-size 4 --epochs 40 --print-every 10 --method entropy adabn""",
    "streets": """--source streets --source-set train --target streets --set train --val-set val
        --input-size 160,96 --augment hflip --model compact --optimizer adamw --learning-rate 2e-3
        --weight-decay 1e-2 --warmup-steps 20 --batch-size 8 --num-steps 300 --adapt-from 150
        --save-pred-every 150 --num-workers 0 --method adversarial --learning-rate-D 1e-3
        --precision fp32 --class-balance --discriminator-width 32 --lambda-adv-target2 0.01
        --baseline""",
}
