"""The fast lane's program, and how it is brought into the kernel."""
