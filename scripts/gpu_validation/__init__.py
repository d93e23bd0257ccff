"""The sections of `validate_gpu.py`: what each checks or measures, on CUDA or in its CPU form."""
