"""The attack of 2020 (Carlini et al., S&P 2021, arXiv 2011.05315), written anew from its description."""
