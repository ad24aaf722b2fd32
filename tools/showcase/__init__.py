"""What tools/demo runs: six nodes, a real transfer, prices, payments, and the books at the end."""
