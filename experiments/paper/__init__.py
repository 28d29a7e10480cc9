"""Figures of Baydin et al., Gradients without Backpropagation (2022), and a fair comparison."""
