"""What a run costs in time, memory and files: measured, where the other scripts only adapt."""
