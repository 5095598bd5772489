"""The distillers that DRKD is compared with, one file each; all off by default (weight 0)."""
