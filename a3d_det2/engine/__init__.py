"""Trainings and commands, for an installed package as for a checkout.

command             a3d-train: whichever engine there is
trainer, hooks      Detectron2's trainer for lesions
launching           its processes and command line, train_net.py
torchvision_loop    the same with torchvision, tools/train_torchvision.py
steps               its iteration, which stops where the loss is no number
common, torchrun    what both share
predict, predictor  a3d-predict, tools/predict.py
archive             a3d-archive: whole archives of CTs
evaluate            a3d-evaluate, tools/evaluate.py
"""
