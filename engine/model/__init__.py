"""One model: loading, verification, forward passes, attention, devices.

load                 loads a folder of weights as a LoadedModel
text_model           the transformers class for a model; drops parts that don't read text
model_config         ModelInfo: the one reader of Hugging Face configurations
verify/              what a model may be trusted with
forward              one forward pass over the new tokens of many rows
attention            attention over rows of different lengths without padding
packed_states        recurrent states of the rows of a pass
recurrent_modules    finds the modules that keep recurrent state, and runs them row by row
hf_fallback          models whose cache can't travel, by transformers' own cache
int8                 linear layers with eight-bit weights
devices              the devices that a model's layers are on
weight_dtypes        refuses stored numbers that need a scale
weight_files         a folder's weights by their headers
estimate             bytes of a model and of a token of its cache, without loading it
config_sizes         limits of a configuration's sizes by what the weights hold
explain_config       which value of a configuration keeps a model from being built
file_sizes           limits of the other files of a folder
load_report          missing and unknown weights
quiet_transformers   silences transformers' messages
"""
