"""What a trained network is used for: predicting, scoring, voting, labelling."""
