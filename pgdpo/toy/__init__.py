"""The toy world whole: scenes, clips with their true reward, encoders and base model."""
