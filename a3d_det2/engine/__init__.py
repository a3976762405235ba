"""Trainings and commands, for an installed package as for a checkout.

command             a3d-train: whichever engine there is
trainer, hooks      Detectron2's trainer for lesions
launching           its processes and command line, train_net.py
torchvision_loop    the same with torchvision, tools/train_torchvision.py
common              what both share
evaluate            a3d-evaluate, tools/evaluate.py
"""
