"""python -m ddpm_hf.toy"""

from ddpm_hf.toy.points import main

if __name__ == "__main__":
    main()
