"""What the experiments are made of, one room for each: it joins a wing with judges, data and reports."""
