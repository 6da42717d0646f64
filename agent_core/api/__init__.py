"""What crosses a socket: the wire's forms, both servers' HTTP manners, the users' client."""
