"""The simulator beside what others measured: babeld's published curve, and real daemons in namespaces."""
