"""The provable attacks: inner products of encodings give the pairs, the pairs give the images.

Chen, Li, Song, Zhuo, ICLR 2021; Huang, Song, Tao, Yin, Zhang, Zhuo, arXiv 2011.11877. On Gaussian features as
in the theorems (:mod:`.gaussian_features`) and on photographs (:mod:`.whitened_images`).
"""
