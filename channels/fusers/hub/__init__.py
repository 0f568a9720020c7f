"""Fusers on the Hugging Face hub: pull and push.

hub_name  Parse the name hub:ORGANISATION/NAME/FOLDER
pull      Download a fuser into the hub's cache
push      Upload a fuser
readme    Write its model card
"""
