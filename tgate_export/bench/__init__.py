"""What is measured: adherence to the prompt, time, and work done."""
