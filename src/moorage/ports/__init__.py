"""What we need from the world, in our own words. An adapter author reads this folder and nothing else."""
