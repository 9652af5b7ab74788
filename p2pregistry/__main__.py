from p2pregistry.cli import main

main()
