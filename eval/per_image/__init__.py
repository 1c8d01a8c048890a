"""What a budget for each image, or each question, could save against one budget for all."""
