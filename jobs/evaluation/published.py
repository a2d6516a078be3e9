"""What the papers print: the rows that stand beside a result."""

# Tai et al., MemNet, ICCV 2017: table 3 (denoising), table 4 (super-resolution), table 5 (JPEG)
# and of other papers as they are named below
# (data set, benchmark) -> method -> what the protocol's `published` names, or the first of it;
# rows named JPEG and Bicubic are the degraded input itself
PAPER: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("Classic5", "jpeg-q10"): {"JPEG": (27.82, 0.7595), "MemNet": (29.69, 0.8107)},
    ("Classic5", "jpeg-q20"): {"JPEG": (30.12, 0.8344), "MemNet": (31.90, 0.8658)},
    ("LIVE1", "jpeg-q10"): {"JPEG": (27.77, 0.7730), "MemNet": (29.45, 0.8193)},
    ("LIVE1", "jpeg-q20"): {"JPEG": (30.07, 0.8512), "MemNet": (31.83, 0.8846)},
    ("BSD200", "noise-30-half"): {"WNNM": (27.48, 0.7807), "MemNet": (28.04, 0.8053)},
    ("BSD200", "noise-50-half"): {"WNNM": (25.26, 0.6928), "MemNet": (25.86, 0.7202)},
    ("BSD200", "noise-70-half"): {"WNNM": (23.95, 0.6346), "MemNet": (24.53, 0.6608)},
    ("Set5", "sr-x2"): {"Bicubic": (33.66, 0.9299), "MemNet": (37.78, 0.9597)},
    ("Set5", "sr-x3"): {"Bicubic": (30.39, 0.8682), "MemNet": (34.09, 0.9248)},
    ("Set5", "sr-x4"): {"Bicubic": (28.42, 0.8104), "MemNet": (31.74, 0.8893)},
    ("Set14", "sr-x2"): {"Bicubic": (30.24, 0.8688), "MemNet": (33.28, 0.9142)},
    ("Set14", "sr-x3"): {"Bicubic": (27.55, 0.7742), "MemNet": (30.00, 0.8350)},
    ("Set14", "sr-x4"): {"Bicubic": (26.00, 0.7027), "MemNet": (28.26, 0.7723)},
    ("BSD100", "sr-x2"): {"Bicubic": (29.56, 0.8431), "MemNet": (32.08, 0.8978)},
    ("BSD100", "sr-x3"): {"Bicubic": (27.21, 0.7385), "MemNet": (28.96, 0.8001)},
    ("BSD100", "sr-x4"): {"Bicubic": (25.96, 0.6675), "MemNet": (27.40, 0.7281)},
    # Li et al., DRCNet, ECCV 2022: tables 1 to 3; its SSIM on SIDD is of another definition
    ("Test100", "pairs-y"): {"MPRNet": (30.27, 0.897), "HINet": (30.29, 0.906), "DRCNet": (32.18, 0.917)},
    ("Rain100H", "pairs-y"): {"MPRNet": (30.41, 0.890), "HINet": (30.65, 0.894), "DRCNet": (30.96, 0.895)},
    ("Rain100L", "pairs-y"): {"MPRNet": (36.40, 0.965), "HINet": (37.28, 0.970), "DRCNet": (38.23, 0.976)},
    ("Test2800", "pairs-y"): {"MPRNet": (33.64, 0.938), "HINet": (33.91, 0.941), "DRCNet": (33.89, 0.946)},
    ("Test1200", "pairs-y"): {"MPRNet": (32.91, 0.916), "HINet": (33.05, 0.919), "DRCNet": (33.40, 0.940)},
    # and 4 of its text; its SSIM of SIDD is another than MATLAB's
    ("GoPro-blur", "pairs-rgb"): {"MPRNet": (32.66, 0.959), "HINet": (32.71, 0.959), "DRCNet": (32.82, 0.961)},
    ("HIDE", "pairs-rgb"): {"MPRNet": (30.96, 0.939), "HINet": (30.32, 0.932), "DRCNet": (31.08, 0.940)},
    ("SIDD", "pairs-rgb-float"): {"MPRNet": (39.71, 0.958), "DRCNet": (40.08,)},
    # Cho et al., TIP 2022, table 2: real rain (RealDataset is the test set of SPA-Data)
    ("SPA", "pairs-y-rcd"): {"SPANet": (40.24, 0.981), "RCDNet": (41.47, 0.983), "Cho et al. 2022": (41.56, 0.989)},
    ("Rain100L", "pairs-y-rcd"): {"RCDNet": (40.17, 0.988), "Cho et al. 2022": (38.45, 0.981)},
    ("Rain12000", "pairs-y-rcd"): {"JORDER-E": (33.98, 0.950), "Cho et al. 2022": (34.55, 0.949)},
    ("Rain14000", "pairs-y-rcd"): {"PReNet": (32.55, 0.946), "Cho et al. 2022": (34.02, 0.945)},
    # Zhang et al., MemoryNet, table 1; others' errors in Lab, which it cites, are of more than one definition
    ("ISTD-istd", "pairs-istd"): {
        "DHAN": (27.88, 34.79, 29.54, 0.921, 0.983, 0.941),
        "MemoryNet": (28.03, 34.44, 30.234, 0.952, 0.986, 0.970, 6.03, 9.72, 5.425),
    },
}
