"""Fusers on the Hugging Face hub: pull and push.

hub_name  How a recipe names a fuser of the Hugging Face hub
pull      Fusers of the Hugging Face hub, in the hub's own cache
push      A fuser to the Hugging Face hub
readme    The model card of a fuser on the Hugging Face hub
"""
