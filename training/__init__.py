"""What learning needs: the student, its teacher, losses, schedules, augmentation, the run."""
