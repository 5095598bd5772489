"""The distillers that DRKD is compared with, one file each; all off by their weight of 0."""
