import sys

from tools.vm.main import main

sys.exit(main())
